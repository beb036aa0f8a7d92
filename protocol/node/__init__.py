"""The node process: configuration, start, serving."""
