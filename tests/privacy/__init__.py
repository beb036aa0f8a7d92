"""Attacks on the boundary between the parties, each beside a control in which it succeeds."""
