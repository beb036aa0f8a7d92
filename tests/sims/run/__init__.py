"""Tests of ``sims.run``."""
