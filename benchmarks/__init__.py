"""Benchmarks of Outdraft: each prints a table and writes `results/<name>.json`."""
