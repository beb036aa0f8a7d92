"""Tests of ``protocol.learngene``."""
