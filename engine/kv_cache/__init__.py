"""The paged KV cache: blocks, prefix cache, and the tensors behind them."""
