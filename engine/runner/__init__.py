"""From a schedule to logits: input buffers and the packed forward pass."""
