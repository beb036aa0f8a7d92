"""Leakage of a released learngene about its collective's training images, measured by attacks."""
