"""Each processor does to every row what its definition says, and nothing to the others."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from engine.sampling import logits_processors as processors
from engine.sampling.logits_processors import NEVER

VOCAB = 37


def random_logits(num_rows: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, VOCAB, generator=generator) * 3.0


def kept(logits: torch.Tensor) -> list[set[int]]:
    return [{v for v in range(row.numel()) if row[v] > NEVER} for row in logits]


def slow_top_p(row: torch.Tensor, top_p: float) -> set[int]:
    probabilities = row.double().softmax(-1).tolist()
    order = sorted(range(len(probabilities)), key=lambda v: -probabilities[v])
    mass = list(itertools.accumulate(probabilities[v] for v in order))
    size = next((n + 1 for n, reached in enumerate(mass) if reached >= top_p), len(order))
    return set(order[:size])


def slow_min_p(row: torch.Tensor, min_p: float) -> set[int]:
    probabilities = row.double().softmax(-1).tolist()
    return {v for v, p in enumerate(probabilities) if p >= min_p * max(probabilities)}


@pytest.mark.parametrize("top_k", [1, 2, 5, VOCAB - 1, VOCAB, 10**6])
def test_top_k_keeps_the_most_likely(top_k: int) -> None:
    logits = random_logits(4)
    expected = [set(row.argsort(descending=True)[:top_k].tolist()) for row in logits]
    processors.keep_top_k(logits, [top_k] * 4)
    assert kept(logits) == expected


def test_top_k_keeps_ties_with_the_last() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])
    processors.keep_top_k(logits, [2])
    assert kept(logits) == [{1, 2, 3}]


@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float) -> None:
    logits = random_logits(8)
    expected = [slow_top_p(row, top_p) for row in logits]
    processors.keep_top_p(logits, [top_p] * 8)
    assert kept(logits) == expected


def test_top_p_keeps_a_nucleus_of_many_tokens() -> None:
    logits = torch.randn(3, 3000, generator=torch.Generator().manual_seed(2)) * 0.3
    expected = [slow_top_p(row, 0.9) for row in logits]
    processors.keep_top_p(logits, [0.9] * 3)
    assert kept(logits) == expected
    assert min(len(nucleus) for nucleus in expected) > 2000


def test_a_small_nucleus_beside_a_large_one_stays_small() -> None:
    flat, peaked = torch.zeros(1, 3000), torch.zeros(1, 3000)
    peaked[0, 7] = 20.0
    logits = torch.cat([flat, peaked])
    processors.keep_top_p(logits, [0.9, 0.9])
    assert kept(logits) == [set(range(3000)), {7}]


def test_top_p_of_a_flat_row_keeps_every_tie() -> None:
    logits = torch.zeros(1, VOCAB)
    processors.keep_top_p(logits, [0.3])
    assert kept(logits) == [set(range(VOCAB))]


def test_top_p_skips_impossible_tokens() -> None:
    logits = torch.tensor([[NEVER, 2.0, NEVER, 1.0]])
    processors.keep_top_p(logits, [0.99])
    assert kept(logits) == [{1, 3}]


@pytest.mark.parametrize("min_p", [0.01, 0.2, 0.9, 1.0])
def test_min_p_keeps_tokens_near_the_most_likely(min_p: float) -> None:
    logits = random_logits(8)
    expected = [slow_min_p(row, min_p) for row in logits]
    processors.keep_min_p(logits, [min_p] * 8)
    assert kept(logits) == expected


def test_filters_leave_the_kept_logits_as_they_are() -> None:
    logits = random_logits(3)
    before = logits.clone()
    processors.keep_min_p(logits, [0.001] * 3)
    processors.keep_top_k(logits, [20] * 3)
    processors.keep_top_p(logits, [0.95] * 3)
    survivors = logits > NEVER
    assert torch.equal(logits[survivors], before[survivors])


def test_temperature_divides_the_distances_to_the_largest() -> None:
    logits = random_logits(2)
    expected = (logits.double() / torch.tensor([[0.5], [1.7]])).softmax(-1)
    processors.scale_by_temperature(logits, [0.5, 1.7])
    torch.testing.assert_close(logits.double().softmax(-1), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("temperature", [1e-30, 1e-40, 5e-324])
def test_smallest_temperatures_leave_the_most_likely_token_alone(temperature: float) -> None:
    logits = torch.tensor([[1.0, 4.0, 3.999999, -80.0]])
    processors.scale_by_temperature(logits, [temperature])
    assert logits.argmax() == 1
    assert logits[0, 1] == 0.0
    assert not logits.isnan().any()


def slow_penalties(row: list[float], prompt: list[int], answer: list[int]) -> list[float]:
    """Repetition 1.5, presence 0.3, frequency 0.2."""
    result = []
    for token_id, logit in enumerate(row):
        value = logit
        if token_id in prompt + answer:
            value = value / 1.5 if value > 0 else value * 1.5
        value -= 0.3 * (token_id in answer) + 0.2 * answer.count(token_id)
        result.append(value)
    return result


def test_penalties_follow_their_definition() -> None:
    prompt, answer = [0, 1, 2, 5], [2, 3, 3, 3, 7]
    logits = random_logits(1)
    counts = torch.tensor([[float(answer.count(v)) for v in range(VOCAB)]])
    in_prompt = torch.tensor([[float(v in prompt) for v in range(VOCAB)]])
    expected = torch.tensor([slow_penalties(logits[0].tolist(), prompt, answer)])
    processors.apply_penalties(
        logits, in_prompt, counts, repetition=[1.5], presence=[0.3], frequency=[0.2]
    )
    torch.testing.assert_close(logits, expected)


def test_neutral_penalties_change_no_bit() -> None:
    logits = random_logits(2)
    before = logits.clone()
    used = torch.ones(2, VOCAB)
    processors.apply_penalties(
        logits, used, used, repetition=[1.0, 1.5], presence=[0.0, 1.0], frequency=[0.0, 1.0]
    )
    assert torch.equal(logits[0], before[0])
    assert not torch.equal(logits[1], before[1])


def test_banned_tokens_become_impossible() -> None:
    logits = random_logits(2)
    before = logits.clone()
    processors.ban_tokens(logits, [0, 0, 1], [3, 4, 3])
    assert logits[0, 3] == logits[0, 4] == logits[1, 3] == NEVER
    assert logits[1, 4] == before[1, 4]


def test_a_banned_nan_stays_noticeable() -> None:
    logits = torch.tensor([[0.0, math.nan]])
    processors.ban_tokens(logits, [0], [1])
    assert processors.choose(logits)[1].tolist() == [True]


ROW_CHANGES: dict[str, Callable[[torch.Tensor, list[int]], None]] = {
    "temperature": lambda part, rows: processors.scale_by_temperature(
        part, [0.3 + 0.2 * row for row in rows]
    ),
    "min_p": lambda part, rows: processors.keep_min_p(part, [0.01 * (row + 1) for row in rows]),
    "top_k": lambda part, rows: processors.keep_top_k(part, [3 * row + 1 for row in rows]),
    "top_p": lambda part, rows: processors.keep_top_p(part, [0.2 + 0.1 * row for row in rows]),
}


@pytest.mark.parametrize("name", ROW_CHANGES)
def test_rows_do_not_depend_on_each_other(name: str) -> None:
    logits = random_logits(6)
    together = logits.clone()
    ROW_CHANGES[name](together, list(range(6)))
    for row in range(6):
        alone = logits[row : row + 1].clone()
        ROW_CHANGES[name](alone, [row])
        assert torch.equal(alone[0], together[row])


@pytest.fixture(params=["C", "numpy"])
def _ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of a CPU to choose."""
    if request.param == "numpy":
        monkeypatch.setattr(processors, "serves", lambda _: False)


@pytest.mark.usefixtures("_ways")
def test_lowest_token_id_wins_ties() -> None:
    logits = torch.tensor([[1.0, 5.0, 5.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    token_ids, is_invalid = processors.choose(logits)
    assert token_ids.tolist() == [1, 0]
    assert is_invalid.tolist() == [False, False]


@pytest.mark.usefixtures("_ways")
@pytest.mark.parametrize(
    "row",
    [
        [0.0, math.nan, 1.0],
        [0.0, math.inf, 1.0],
        [NEVER, NEVER, NEVER],
        [math.nan, math.nan, math.nan],
    ],
)
def test_rows_with_nothing_to_choose_are_reported(row: list[float]) -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], row])
    token_ids, is_invalid = processors.choose(logits)
    assert token_ids.tolist() == [1, 0]
    assert is_invalid.tolist() == [False, True]


@pytest.mark.usefixtures("_ways")
def test_choose_equals_its_reference() -> None:
    logits = random_logits(12).round()
    logits[3, 9] = math.nan
    logits[4] = NEVER
    logits[5, 0] = math.inf
    for mine, expected in zip(
        processors.choose(logits), processors.choose_reference(logits), strict=True
    ):
        assert torch.equal(mine, expected)


@pytest.mark.usefixtures("_ways")
def test_margins_equal_their_reference() -> None:
    logits = torch.cat([random_logits(12), random_logits(12).round()])[:, : VOCAB - 3]
    logits[3, 9] = math.nan
    logits[4] = NEVER
    logits[4, 2] = 1.5
    token_ids = processors.choose(logits)[0]
    expected = processors.margins_reference(logits.clone(), token_ids)
    ours = processors.margins(logits, token_ids)
    # A row that broke has no token, and so no margin.
    assert torch.equal(ours.isnan(), expected.isnan())
    assert torch.equal(ours.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert ours[4] == math.inf


@pytest.mark.parametrize("count", [1, 5, VOCAB])
def test_largest_equals_its_reference(count: int) -> None:
    logits = random_logits(5).round()
    logits[2, 3:] = NEVER
    assert torch.equal(
        processors.largest(logits, count), processors.largest_reference(logits, count)
    )


def test_no_rows_choose_nothing() -> None:
    token_ids, is_invalid = processors.choose(torch.zeros(0, 5))
    assert token_ids.shape == is_invalid.shape == (0,)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ROW_CHANGES)
def test_a_gpu_keeps_the_tokens_that_the_host_keeps(name: str) -> None:
    host = random_logits(6)
    device = host.cuda()
    ROW_CHANGES[name](host, list(range(6)))
    ROW_CHANGES[name](device, list(range(6)))
    torch.testing.assert_close(device.cpu(), host)
    assert torch.equal(processors.choose(device)[0].cpu(), processors.choose(host)[0])


def test_margins_say_by_how_much_the_largest_leads() -> None:
    logits = random_logits(5)
    logits[1] = NEVER
    logits[1, 3] = 2.0
    logits[2, [4, 9]] = 50.0
    logits[3] = NEVER
    logits[4, 6] = float("nan")
    token_ids = torch.tensor([int(logits[0].argmax()), 3, 4, 0, 6])
    best, second = logits[0].topk(2).values
    expected = processors.margins_reference(logits.clone(), token_ids)
    found = processors.margins(logits, token_ids)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0, equal_nan=True)
    assert found[:3].tolist() == [float(best - second), math.inf, 0.0]
    assert found[3:].isnan().all()
