"""Tests of ``sims.bench``."""
