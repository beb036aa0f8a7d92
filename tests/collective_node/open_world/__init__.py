"""Tests of ``collective_node.open_world``."""
