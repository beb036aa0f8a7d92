"""Tests of ``protocol.keys``."""
