"""Bytes and texts in the forms in which they cross a border: to another party, or to a reader's screen."""
