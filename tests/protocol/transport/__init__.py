"""Tests of ``protocol.transport``."""
