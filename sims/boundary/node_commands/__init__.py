"""Attacks by commands to a node, which a courier that was taken over may send."""
