"""Outdraft's kernels: one file per operation, imported by name; this package imports nothing."""

__version__ = "0.0.0"
