"""Tests of ``collective_node.annotation``."""
