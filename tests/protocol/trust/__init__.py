"""Tests of ``protocol.trust``."""
