"""Tests of ``collective_node.extraction``."""
