"""Philox4x32-10 in torch operations: random words that are a function of a counter and a key.

`engine/sampling/noise.py` says which counters and keys are whose.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3. int64 holds the
32-bit words, and wraps, so products keep the right bits. The same on every device.
"""

from __future__ import annotations

import torch

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
NUM_ROUNDS = 10
MASK = 0xFFFFFFFF
_LANES = 4

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def philox(counter: Words, seed: torch.Tensor) -> Words:
    """Encrypt counters.

    Args:
        counter: four int64 tensors of 32-bit words, broadcast.
        seed: int64, broadcast, the 64 bits of an unsigned key.

    Returns:
        Four tensors of 32-bit words, int64.
    """
    k0, k1 = seed & MASK, (seed >> 32) & MASK
    c0, c1, c2, c3 = counter
    for _ in range(NUM_ROUNDS):
        high0, low0 = _multiply(MULTIPLIERS[0], c0)
        high1, low1 = _multiply(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def gumbel_rows(
    seeds: torch.Tensor, choices: torch.Tensor, positions: torch.Tensor, vocab_size: int
) -> torch.Tensor:
    """Compute one row of Gumbel noise per (seed, choice, position), all [num_rows] int64.

    Returns:
        [num_rows, vocab_size], float32.
    """
    num_groups = -(-vocab_size // _LANES)
    groups = torch.arange(num_groups, device=seeds.device)[None, :]
    counter = (groups, positions[:, None], choices[:, None], torch.zeros_like(choices)[:, None])
    shape = (len(seeds), num_groups)
    lanes = [word.expand(shape) for word in philox(counter, seeds[:, None])]
    words = torch.stack(lanes, dim=-1).flatten(1)[:, :vocab_size]
    uniform = (words.double() + 0.5) * 2.0**-32
    return (-torch.log(-torch.log(uniform))).float()


def _multiply(multiplier: int, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The high and low 32 bits of a 32 x 32 bit product."""
    product = words * multiplier
    return (product >> 32) & MASK, product & MASK
