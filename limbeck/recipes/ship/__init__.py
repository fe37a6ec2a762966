"""Networks leave for other places."""
