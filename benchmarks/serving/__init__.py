"""Measures OpenAI-compatible servers from outside, as `benchmarks/serve.py` asks for."""
