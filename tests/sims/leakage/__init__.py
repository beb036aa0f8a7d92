"""Tests of the attacks on a released learngene."""
