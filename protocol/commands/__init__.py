"""Command lines, and nothing that another room needs."""
