"""One side's part in an exchange, with its memory and its gate."""
