"""Tests of ``collective_node.network``."""
