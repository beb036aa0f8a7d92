"""Frames over a local socket, the courier and the relay."""
