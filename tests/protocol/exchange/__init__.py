"""Tests of ``protocol.exchange``."""
