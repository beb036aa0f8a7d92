"""Tests of ``protocol.node``."""
