"""Counter-based Gumbel noise: a pure function of (seed, choice, position, token id).

Knows Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3)
and how its 32-bit words become Gumbel variates. Holds no generator state and knows neither requests
nor batches, so a row of noise is the same on every device, in every batch and on every rank.

    key     = (seed low 32 bits, seed high 32 bits)
    counter = (token_id // 4, position, choice, 0), lane token_id % 4
    u       = (word + 1/2) * 2^-32            in float64, never 0 and never 1
    g       = -log(-log(u))                   in float64, rounded once to float32

A position can also have numbers of its own, apart from its tokens': the counter's last word, 0
above, is 1 for `uniform_draws`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from kernels.gumbel_noise_cpu import gumbel_noise_on_cpu, serves
from kernels.philox import MASK, MULTIPLIERS, NUM_ROUNDS, WEYL, gumbel_rows

_LANES = 4
# Counters per numpy call: few calls, and the working arrays still fit in a core's L2 cache.
_CHUNK = 8192
_DRAWS = 1

Words = npt.NDArray[np.uint64]
_LOW, _HALF = np.uint64(MASK), np.uint64(32)
_M0, _M1 = (np.uint64(multiplier) for multiplier in MULTIPLIERS)
_MULTIPLIER_COLUMN = np.array([_M0, _M1])[:, None, None]
# What rounds after the first have added to their key: [num_rounds - 1, 2, 1].
_LATER_WEYLS = np.array(
    [[[num * weyl] for weyl in WEYL] for num in range(1, NUM_ROUNDS)], dtype=np.uint64
)
# Which 32-bit half of a 64-bit state word holds its even lane, and which its odd one.
_HALF_OF_LANE = (1, 0) if sys.byteorder == "little" else (0, 1)


def philox4x32(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """Encrypt one counter in plain integers: the definition the fast paths are tested against.

    Args:
        counter: four 32-bit words.
        key: two 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(NUM_ROUNDS):
        product0, product1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 & MASK,
            (product0 >> 32) ^ c3 ^ k1,
            product0 & MASK,
        )
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
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
        draw = gumbel_noise_on_cpu if serves() else noise_by_numpy
        return torch.from_numpy(draw(seeds, choices, positions, vocab_size))
    return noise_on_device(seeds, choices, positions, vocab_size, device)


def noise_by_numpy(
    seeds: Sequence[int], choices: Sequence[int], positions: Sequence[int], vocab_size: int
) -> npt.NDArray[np.float32]:
    """Compute the rows of `gumbel_noise` where there is no C compiler.

    Returns:
        `[num_rows, vocab_size]`.
    """
    num_rows = len(seeds)
    num_groups = -(-vocab_size // _LANES)
    columns = [np.array(values, dtype=np.uint64) for values in (seeds, choices, positions)]
    noise = np.empty((num_rows, num_groups * _LANES), dtype=np.float32)
    step = max(1, _CHUNK // max(1, num_groups))
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        seed, choice, position = (column[rows] for column in columns)
        _words_to_gumbel(_philox_rows(seed, choice, position, num_groups), noise[rows])
    return noise[:, :vocab_size]


def uniform_draws(
    seeds: Sequence[int], choices: Sequence[int], positions: Sequence[int]
) -> npt.NDArray[np.float64]:
    """Draw one number per (seed, choice, position), independent of all Gumbel noise.

    Args:
        seeds: 64-bit seeds, one per row.
        choices: which of a prompt's `n` answers each row belongs to.
        positions: absolute index in the sequence.

    Returns:
        `[num_rows]`, float64, above 0 and below 1.
    """
    seed, choice, position = (np.array(v, dtype=np.uint64) for v in (seeds, choices, positions))
    state = _philox_rows(seed, choice, position, num_groups=1, last_word=_DRAWS)
    words = (state[0, :, 0] >> _HALF).astype(np.float64)
    return (words + 0.5) * 2.0**-32


@lru_cache(maxsize=8)
def _first_products(num_groups: int, last_word: int) -> Words:
    """The first round's `multiplier * (token_id // 4)` and last word: the same for every row."""
    products = np.arange(num_groups, dtype=np.uint64) * _M0
    products ^= np.uint64(last_word) << _HALF
    products.setflags(write=False)
    return products


def _philox_rows(
    seeds: Words, choices: Words, positions: Words, num_groups: int, last_word: int = 0
) -> Words:
    """Encrypt counters (0..num_groups-1, position, choice, last_word) of each row.

    A state is two 64-bit words, `c0 << 32 | c1` and `c2 << 32 | c3`. So laid out, a product lands
    where its halves belong, and a round is five operations on all states at once.

    Returns:
        `[2, num_rows, num_groups]`, uint64.
    """
    keys = np.stack([seeds & _LOW, seeds >> _HALF])  # [2, num_rows]
    # Of all rounds but the first at once: [num_rounds - 1, 2, num_rows, 1], where a round wants it.
    round_keys = (((keys + _LATER_WEYLS) & _LOW) << _HALF)[..., None]
    state = np.empty((2, len(seeds), num_groups), dtype=np.uint64)
    state[0] = ((choices * _M1) ^ ((positions ^ keys[0]) << _HALF))[:, None]
    products = _first_products(num_groups, last_word)
    np.bitwise_xor(products, (keys[1] << _HALF)[:, None], out=state[1])
    products = np.empty_like(state)
    for round_key in round_keys:
        np.right_shift(state, _HALF, out=products)
        products *= _MULTIPLIER_COLUMN
        state <<= _HALF
        state ^= round_key
        state ^= products[::-1]
    return state


def _words_to_gumbel(state: Words, out: npt.NDArray[np.float32]) -> None:
    """Turn `[2, num_rows, num_groups]` states into `[num_rows, num_groups * 4]` Gumbel noise."""
    _, num_rows, num_groups = state.shape
    halves = state.view(np.uint32).reshape(2, num_rows, num_groups, 2)
    words = np.empty((num_rows, num_groups, _LANES), dtype=np.uint32)
    for lane in range(_LANES):
        words[:, :, lane] = halves[lane // 2, :, :, _HALF_OF_LANE[lane % 2]]
    values = words.reshape(num_rows, num_groups * _LANES) + 0.5
    values *= 2.0**-32
    np.log(values, out=values)
    np.negative(values, out=values)
    np.log(values, out=values)
    np.negative(values, out=out, casting="same_kind")


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

    def column(values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64).to(device)

    # The bits of an unsigned seed, as int64 has them.
    signed = [seed - 2**64 if seed >= 2**63 else seed for seed in seeds]
    return gumbel_rows(column(signed), column(choices), column(positions), vocab_size)
