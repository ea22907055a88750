"""Batches: files of requests that are answered when nobody waits for an answer now."""
