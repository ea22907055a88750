"""Answers that are remembered: exact repeats of what can only be answered in one way.

What is remembered is what the engine said, step by step, for a prompt's tokens and its sampling
settings. Whoever reads an engine's deltas cannot tell a replay from the engine, so every wire,
streamed or whole, goes through the same door, and nothing here knows of wires.
"""
