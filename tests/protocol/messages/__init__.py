"""Tests of ``protocol.messages``."""
