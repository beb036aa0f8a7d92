"""Benchmarks: ratios that are measured in one run."""
