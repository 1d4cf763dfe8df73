"""What theory says a measurement will be: exact recursions, closed forms, sums over every path."""
