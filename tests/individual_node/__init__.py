"""Tests of the individual."""
