"""The dice on the device are the host's dice."""

from __future__ import annotations

import pytest
import torch

from engine.sampling.noise import uniform_draws
from kernels.decode_state import Dice
from kernels.synthetic_limits import synthetic_limits, synthetic_limits_reference
from tests.kernels.decode_states import int32
from tests.kernels.devices import DEVICES

SEEDS = [0, 1, 77, 2**40 + 3, 2**63 + 12345, 2**64 - 1]
CHOICES = [0, 3, 1, 0, 2, 5]
NUM_TOKENS = [1, 40, 100_000, 2**31 - 2, 7, 128]
RATES = [0.9, 0.6, 0.8]
MAX_DRAFTS = 9


def signed(seed: int) -> int:
    """The int64 with the bits of an unsigned seed."""
    return seed - 2**64 if seed >= 2**63 else seed


def make_dice(rates: list[float], device: str) -> tuple[Dice, torch.Tensor]:
    """The dice of all slots, and how many tokens these have."""
    dice = Dice(
        torch.tensor([signed(seed) for seed in SEEDS], device=device),
        torch.tensor(CHOICES, device=device),
        torch.tensor(rates, dtype=torch.float64, device=device),
    )
    return dice, torch.tensor(NUM_TOKENS, device=device)


def on_the_host(rates: list[float], slot: int, start: int, num_drafts: int) -> int:
    """What `SyntheticAcceptance` accepts."""
    for place in range(num_drafts):
        draw = uniform_draws([SEEDS[slot]], [CHOICES[slot]], [start + place])[0]
        if draw >= rates[min(place, len(rates) - 1)]:
            return place
    return num_drafts


@pytest.mark.parametrize("rates", [RATES, [0.5], [0.0], [1.0]])
def test_accepts_what_the_host_accepts(rates: list[float]) -> None:
    dice, num_tokens = make_dice(rates, "cpu")
    slots, num_drafts = [5, 0, 1, 2, 3, 4], [9, 8, 0, 1, 5, 9]
    seen = set()
    for step in range(20):
        limits = int32([-1] * 6, "cpu")
        arguments = (int32(slots, "cpu"), int32(num_drafts, "cpu"), limits)
        synthetic_limits(dice, num_tokens + step, *arguments, max_drafts=MAX_DRAFTS)
        expected = [
            on_the_host(rates, slot, NUM_TOKENS[slot] + step, count)
            for slot, count in zip(slots, num_drafts, strict=True)
        ]
        assert limits.tolist() == expected
        seen.update(expected)
    assert len(seen) > 3 or rates[0] == 0.0


@pytest.mark.parametrize("rate_offset", [0.0, 2.0**-33])
def test_a_draw_that_equals_its_rate_is_rejected(rate_offset: float) -> None:
    draw = float(uniform_draws([77], [1], [100_000])[0])
    dice, num_tokens = make_dice([draw + rate_offset], "cpu")
    limits = int32([-1], "cpu")
    synthetic_limits(dice, num_tokens, int32([2], "cpu"), int32([1], "cpu"), limits, max_drafts=1)
    assert limits.item() == (rate_offset > 0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rates", [RATES, [0.5], [0.95] * 9])
def test_kernel_equals_reference(rates: list[float], device: str) -> None:
    from kernels.synthetic_limits_triton import synthetic_limits_triton

    dice, num_tokens = make_dice(rates, device)
    slots, num_drafts = int32([5, 0, 1, 2, 3, 4], device), int32([9, 8, 0, 1, 5, 9], device)
    for step in range(6):
        ours, theirs = int32([-1] * 6, device), int32([-2] * 6, device)
        arguments = (dice, num_tokens + step, slots, num_drafts)
        synthetic_limits_triton(*arguments, ours, MAX_DRAFTS)
        synthetic_limits_reference(*arguments, theirs, MAX_DRAFTS)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("device", DEVICES)
def test_kernel_takes_no_requests(device: str) -> None:
    from kernels.synthetic_limits_triton import synthetic_limits_triton

    dice, num_tokens = make_dice(RATES, device)
    nothing = int32([], device)
    synthetic_limits_triton(dice, num_tokens, nothing, nothing, nothing, MAX_DRAFTS)
    assert nothing.numel() == 0
