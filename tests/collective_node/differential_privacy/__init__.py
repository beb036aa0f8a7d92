"""Tests of ``collective_node.differential_privacy``."""
