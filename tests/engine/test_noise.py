"""Gumbel noise is Philox, is the same everywhere, and is Gumbel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from engine.sampling.noise import (
    gumbel_noise,
    noise_by_numpy,
    noise_on_device,
    philox4x32,
    uniform_draws,
)
from kernels.gumbel_noise_cpu import gumbel_noise_on_cpu, serves

# Random123's kat_vectors for philox4x32 with 10 rounds: counter, key, words.
KNOWN_ANSWERS = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]
SEEDS = [0, 5, 2**64 - 1, 12345678901234567890]
CHOICES = [0, 1, 127, 3]
POSITIONS = [0, 77, 2**32 - 1, 4096]


def words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


def slow_gumbel(seed: int, choice: int, position: int, token_id: int) -> float:
    key = (seed & 0xFFFFFFFF, seed >> 32)
    word = philox4x32((token_id // 4, position, choice, 0), key)[token_id % 4]
    return -math.log(-math.log((word + 0.5) * 2.0**-32))


def gumbel_distance(values: np.ndarray) -> float:
    """Kolmogorov and Smirnov's distance to the standard Gumbel law, times sqrt(n)."""
    law = np.exp(-np.exp(-np.sort(values.ravel())))
    steps = np.arange(law.size + 1) / law.size
    return max(np.abs(law - steps[1:]).max(), np.abs(law - steps[:-1]).max()) * law.size**0.5


# The distance exceeds this with probability 2 * exp(-2 * 2.7**2), below 1e-6.
DISTANCE_LIMIT = 2.7


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(counter: str, key: str, expected: str) -> None:
    assert philox4x32(words(counter), words(key)) == words(expected)


@pytest.mark.parametrize("vocab_size", [1, 3, 4, 5, 1003])
def test_rows_follow_the_definition(vocab_size: int) -> None:
    noise = gumbel_noise(SEEDS, CHOICES, POSITIONS, vocab_size)
    assert noise.dtype == torch.float32
    keys = zip(SEEDS, CHOICES, POSITIONS, strict=True)
    expected = [[slow_gumbel(*key, token) for token in range(vocab_size)] for key in keys]
    torch.testing.assert_close(noise, torch.tensor(expected), rtol=3e-7, atol=3e-7)


def test_torch_path_equals_numpy_path() -> None:
    fast = gumbel_noise(SEEDS, CHOICES, POSITIONS, 1003)
    portable = noise_on_device(SEEDS, CHOICES, POSITIONS, 1003, "cpu")
    torch.testing.assert_close(fast, portable, rtol=2e-7, atol=2e-7)
    assert (fast == portable).float().mean() > 0.999


def test_longer_row_begins_with_the_shorter() -> None:
    short = gumbel_noise(SEEDS, CHOICES, POSITIONS, 37)
    long = gumbel_noise(SEEDS, CHOICES, POSITIONS, 1000)
    assert torch.equal(short, long[:, :37])


def test_row_is_the_same_alone_and_in_any_batch() -> None:
    num_rows, vocab_size = 300, 128
    seeds = [17 * row for row in range(num_rows)]
    choices = [row % 3 for row in range(num_rows)]
    positions = [5 * row + 1 for row in range(num_rows)]
    together = gumbel_noise(seeds, choices, positions, vocab_size)
    reversed_order = gumbel_noise(seeds[::-1], choices[::-1], positions[::-1], vocab_size)
    assert torch.equal(together, reversed_order.flip(0))
    for row in (0, 1, 150, 299):
        alone = gumbel_noise([seeds[row]], [choices[row]], [positions[row]], vocab_size)
        assert torch.equal(alone[0], together[row])


def test_row_is_the_same_across_internal_chunks() -> None:
    vocab_size = 40_000
    together = gumbel_noise([1, 2, 3], [0, 0, 0], [9, 9, 9], vocab_size)
    for row, seed in enumerate([1, 2, 3]):
        assert torch.equal(gumbel_noise([seed], [0], [9], vocab_size)[0], together[row])


@pytest.mark.parametrize("changed", ["seed", "seed's high half", "choice", "position"])
def test_every_part_of_the_key_changes_the_row(changed: str) -> None:
    base = {"seeds": [7], "choices": [0], "positions": [3]}
    other = {
        "seed": {"seeds": [8]},
        "seed's high half": {"seeds": [7 + 2**32]},
        "choice": {"choices": [1]},
        "position": {"positions": [4]},
    }[changed]
    first = gumbel_noise(**base, vocab_size=256)
    second = gumbel_noise(**{**base, **other}, vocab_size=256)
    assert (first == second).sum() == 0


def test_no_rows_give_no_noise() -> None:
    assert gumbel_noise([], [], [], 10).shape == (0, 10)


def test_noise_has_the_gumbel_law() -> None:
    noise = gumbel_noise([3] * 50, [0] * 50, list(range(50)), 4000).double().numpy()
    assert gumbel_distance(noise) < DISTANCE_LIMIT
    assert gumbel_distance(noise[:, 0::4]) < DISTANCE_LIMIT
    assert gumbel_distance(noise[:, 3::4]) < DISTANCE_LIMIT


def test_distance_notices_a_law_that_is_slightly_off() -> None:
    noise = gumbel_noise([3] * 50, [0] * 50, list(range(50)), 4000).double().numpy()
    assert gumbel_distance(noise * 1.04) > DISTANCE_LIMIT
    assert gumbel_distance(noise + 0.02) > DISTANCE_LIMIT


def largest_correlation(rows: np.ndarray) -> float:
    """The largest correlation between two rows, in standard deviations under independence."""
    correlation = np.corrcoef(rows)
    np.fill_diagonal(correlation, 0.0)
    return float(np.abs(correlation).max() * rows.shape[1] ** 0.5)


def test_rows_of_neighbouring_keys_are_uncorrelated() -> None:
    seeds = [0] * 20 + list(range(1, 21))
    positions = list(range(20)) + [0] * 20
    noise = gumbel_noise(seeds, [0] * 40, positions, 8000).double().numpy()
    assert largest_correlation(noise) < 5.5


def test_correlation_notices_noise_that_is_used_twice() -> None:
    noise = gumbel_noise([0] * 4, [0] * 4, [0, 1, 2, 1], 8000).double().numpy()
    assert largest_correlation(noise) > 5.5


@pytest.mark.gpu
def test_noise_on_a_gpu_equals_noise_on_the_host() -> None:
    seeds, positions = list(range(64)), list(range(64))
    host = gumbel_noise(seeds, [0] * 64, positions, 32_000)
    device = gumbel_noise(seeds, [0] * 64, positions, 32_000, "cuda").cpu()
    torch.testing.assert_close(host, device, rtol=2e-7, atol=2e-7)
    assert (host != device).sum() <= 20


def test_uniform_draws_are_the_words_that_no_token_has() -> None:
    draws = uniform_draws(SEEDS, CHOICES, POSITIONS)
    for draw, seed, choice, position in zip(draws, SEEDS, CHOICES, POSITIONS, strict=True):
        key = (seed & 0xFFFFFFFF, seed >> 32)
        word = philox4x32((0, position, choice, 1), key)[0]
        assert draw == (word + 0.5) * 2.0**-32


def test_uniform_draws_are_uniform() -> None:
    count = 20_000
    draws = np.sort(uniform_draws([7] * count, [0] * count, range(count)))
    distance = np.abs(draws - (np.arange(count) + 0.5) / count).max() * count**0.5
    assert distance < DISTANCE_LIMIT
    assert draws[0] > 0.0
    assert draws[-1] < 1.0


@pytest.mark.skipif(not serves(), reason="no C compiler here")
def test_both_ways_of_a_cpu_draw_the_same() -> None:
    generator = np.random.default_rng(0)
    seeds = [*SEEDS, *(int(s) for s in generator.integers(0, 2**64, 60, dtype=np.uint64))]
    choices, positions = [*CHOICES, *range(60)], [*POSITIONS, *range(10**6, 10**6 + 60)]
    for size in (1, 4, 255, 256, 1027):
        ours = gumbel_noise_on_cpu(seeds, choices, positions, size)
        expected = noise_by_numpy(seeds, choices, positions, size)
        assert ours.shape == expected.shape
        assert (ours != expected).mean() < 1e-4
        np.testing.assert_allclose(ours, expected, rtol=2e-7, atol=2e-7)


def test_without_a_compiler_numpy_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = gumbel_noise(SEEDS, CHOICES, POSITIONS, 50)
    monkeypatch.setattr("engine.sampling.noise.serves", lambda: False)
    torch.testing.assert_close(gumbel_noise(SEEDS, CHOICES, POSITIONS, 50), expected)
