"""Command lines, and nothing that another folder needs."""
