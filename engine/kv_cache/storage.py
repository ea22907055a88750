"""The tensors behind the KV cache blocks of one model: one key and one value cache per layer.

Knows shapes and bytes; who owns which block is the manager's business. Block 0 is scratch.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import torch

# Memory of this process alone, where systems tell.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


@dataclass(frozen=True, slots=True)
class LayerKVSpec:
    """What one attention layer stores per token.

    Attributes:
        num_kv_heads: key and value heads.
        head_dim: elements of a key head.
        value_head_dim: elements of a value head; None = as many as a key head.
    """

    num_kv_heads: int
    head_dim: int
    value_head_dim: int | None = None

    @property
    def elements_per_token(self) -> int:
        """Key and value elements of one token."""
        value_dim = self.head_dim if self.value_head_dim is None else self.value_head_dim
        return self.num_kv_heads * (self.head_dim + value_dim)


def bytes_per_block(layers: Sequence[LayerKVSpec], block_size: int, dtype: torch.dtype) -> int:
    """Return the bytes that one block takes over all layers."""
    return sum(layer.elements_per_token for layer in layers) * block_size * dtype.itemsize


class KVCacheStorage:
    """Paged key and value caches.

    Attributes:
        key_caches: per layer, [num_blocks, block_size, num_kv_heads, head_dim].
        value_caches: per layer, [num_blocks, block_size, num_kv_heads, value_head_dim].
    """

    def __init__(
        self,
        layers: Sequence[LayerKVSpec],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.key_caches: list[torch.Tensor] = []
        self.value_caches: list[torch.Tensor] = []
        for layer in layers:
            value_dim = layer.head_dim if layer.value_head_dim is None else layer.value_head_dim
            shape = (num_blocks, block_size, layer.num_kv_heads)
            self.key_caches.append(_zeros((*shape, layer.head_dim), dtype, device))
            self.value_caches.append(_zeros((*shape, value_dim), dtype, device))


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Allocate zeros; on a CPU the system hands out their memory as blocks are first written."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    # Not by numpy, which asks for huge pages: finding one can take the system milliseconds, and
    # that in the middle of a prompt.
    memory = mmap.mmap(-1, size, **_PRIVATE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
