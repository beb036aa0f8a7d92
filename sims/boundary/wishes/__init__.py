"""Wishes and messages that a hostile relay, or a hostile partner, brings to a node."""
