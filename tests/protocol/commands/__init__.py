"""Tests of ``protocol.commands``."""
