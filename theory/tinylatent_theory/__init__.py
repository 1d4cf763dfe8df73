"""What can be said exactly: predictions, hand-built weights, and the ledger of claims, checked by running them."""
