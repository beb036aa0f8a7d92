"""Tests of the collective."""
