"""Tests of ``sims.results``."""
