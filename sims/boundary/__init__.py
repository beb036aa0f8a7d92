"""Attacks on the boundary: a real deployment on this machine, attempts on it, and their outcome."""
