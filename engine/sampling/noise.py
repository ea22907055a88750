"""Counter-based Gumbel noise: a pure function of (seed, choice, position, token id).

Knows Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3)
and how its 32-bit words become Gumbel variates. Holds no generator state and knows neither requests
nor batches, so a row of noise is the same on every device, in every batch and on every rank.

    key     = (seed low 32 bits, seed high 32 bits)
    counter = (token_id // 4, position, choice, 0), lane token_id % 4
    u       = (word + 1/2) * 2^-32            in float64, never 0 and never 1
    g       = -log(-log(u))                   in float64, rounded once to float32
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_NUM_ROUNDS = 10
_LANES = 4
_MASK = 0xFFFFFFFF
# Elements per numpy call: eight working arrays of this many words stay inside a core's L2 cache.
_CHUNK = 8192

Words = npt.NDArray[np.uint64]


def philox4x32(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """Encrypt one counter in plain integers: the definition the fast paths are tested against.

    Args:
        counter: four 32-bit words.
        key: two 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_NUM_ROUNDS):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 & _MASK,
            (product0 >> 32) ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def gumbel_noise(
    seeds: Sequence[int],
    choices: Sequence[int],
    positions: Sequence[int],
    vocab_size: int,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Compute one row of Gumbel noise per (seed, choice, position).

    Args:
        seeds: 64-bit seeds, one per row.
        choices: which of a prompt's `n` answers each row belongs to.
        positions: absolute index in the sequence of the token that each row samples.
        vocab_size: entries per row; a longer row begins with the shorter one.
        device: where the rows are wanted.

    Returns:
        `[num_rows, vocab_size]`, float32.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return torch.from_numpy(_noise_on_cpu(seeds, choices, positions, vocab_size))
    return noise_on_device(seeds, choices, positions, vocab_size, device)


def _noise_on_cpu(
    seeds: Sequence[int], choices: Sequence[int], positions: Sequence[int], vocab_size: int
) -> npt.NDArray[np.float32]:
    num_rows = len(seeds)
    num_groups = -(-vocab_size // _LANES)
    seed_words = np.array(seeds, dtype=np.uint64)
    choice_words = np.array(choices, dtype=np.uint64)
    position_words = np.array(positions, dtype=np.uint64)
    noise = np.empty((num_rows, num_groups * _LANES), dtype=np.float32)
    step = max(1, _CHUNK // max(1, num_groups))
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        words = _philox_rows(seed_words[rows], choice_words[rows], position_words[rows], num_groups)
        _words_to_gumbel(words, noise[rows])
    return noise[:, :vocab_size]


@lru_cache(maxsize=8)
def _first_products(num_groups: int) -> Words:
    """The first round's `multiplier * (token_id // 4)`: the same for every row."""
    products = np.arange(num_groups, dtype=np.uint64) * np.uint64(_MULTIPLIERS[0])
    products.setflags(write=False)
    return products


def _philox_rows(seeds: Words, choices: Words, positions: Words, num_groups: int) -> Words:
    """Encrypt counters (0..num_groups-1, position, choice, 0) of each row.

    Returns:
        `[2, 2, num_rows, num_groups]`: words (c0, c2) and words (c1, c3).
    """
    mask, shift = np.uint64(_MASK), np.uint64(32)
    m0, m1 = (np.uint64(m) for m in _MULTIPLIERS)
    num_rows = len(seeds)
    keys = np.stack([seeds & mask, seeds >> shift])  # [2, num_rows]
    weyl = np.array(_WEYL, dtype=np.uint64)[:, None]
    product0 = _first_products(num_groups)
    product1 = (choices * m1)[:, None]
    even = np.empty((2, num_rows, num_groups), dtype=np.uint64)
    odd = np.empty_like(even)
    even[0] = ((product1 >> shift) ^ positions[:, None] ^ keys[0][:, None]) & mask
    even[1] = (product0 >> shift) ^ keys[1][:, None]
    odd[0] = product1
    odd[1] = product0
    multipliers = np.array([m0, m1], dtype=np.uint64)[:, None, None]
    products, high = np.empty_like(even), np.empty_like(even)
    for _ in range(1, _NUM_ROUNDS):
        keys = (keys + weyl) & mask
        np.multiply(even, multipliers, out=products)
        # The odd words keep stale high halves; the mask below clears them after the exclusive or.
        np.right_shift(products, shift, out=high)
        np.bitwise_xor(high[::-1], odd, out=even)
        even ^= keys[:, :, None]
        even &= mask
        odd[0], odd[1] = products[1], products[0]
    return np.stack([even, odd & mask])


def _words_to_gumbel(words: Words, out: npt.NDArray[np.float32]) -> None:
    """Turn `[2, 2, num_rows, num_groups]` words into `[num_rows, num_groups * 4]` Gumbel noise."""
    _, _, num_rows, num_groups = words.shape
    uniform = np.empty((num_rows, num_groups, 2, 2))
    np.add(words.transpose(2, 3, 1, 0), 0.5, out=uniform)
    flat = uniform.reshape(num_rows, num_groups * _LANES)
    flat *= 2.0**-32
    np.log(flat, out=flat)
    np.negative(flat, out=flat)
    np.log(flat, out=flat)
    np.negative(flat, out=out, casting="same_kind")


def noise_on_device(
    seeds: Sequence[int],
    choices: Sequence[int],
    positions: Sequence[int],
    vocab_size: int,
    device: torch.device | str,
) -> torch.Tensor:
    """Compute the rows of `gumbel_noise` with torch operations on any device.

    Returns:
        `[num_rows, vocab_size]`, float32, on `device`.
    """
    num_groups = -(-vocab_size // _LANES)

    def column(values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64).to(device)[:, None]

    k0 = column([seed & _MASK for seed in seeds])
    k1 = column([seed >> 32 for seed in seeds])
    c0 = torch.arange(num_groups, device=device)[None, :]
    c1, c2 = column(positions), column(choices)
    c3 = torch.zeros_like(c2)
    for _ in range(_NUM_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    shape = (len(seeds), num_groups)
    words = torch.stack([word.expand(shape) for word in (c0, c1, c2, c3)], dim=-1)
    uniform = (words.flatten(1)[:, :vocab_size].double() + 0.5) * 2.0**-32
    return (-torch.log(-torch.log(uniform))).float()


def _multiply(multiplier: int, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The high and low 32 bits of a 32 x 32 bit product; int64 wraps, so the bits are right."""
    product = words * multiplier
    return (product >> 32) & _MASK, product & _MASK
