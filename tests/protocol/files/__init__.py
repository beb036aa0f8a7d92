"""Tests of ``protocol.files``."""
