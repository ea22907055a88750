"""Measurements: what `outdraft bench` and `outdraft tune` run, and programs with results in a file."""
