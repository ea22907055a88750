"""From logits to tokens: one pipeline for every row of every pass."""
