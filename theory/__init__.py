"""What can be said exactly: predictions and hand-built weights, checked by running them."""
