"""Timing passes at start-up: a table of what was run, kept on disk, within its time."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from engine.runner import step_timer
from engine.runner.step_timer import Timing, measure_step_costs, time_runners
from engine.speculative.step_costs import StepCosts
from tests.tiny_models import generate, greedy, make_core, random_prompts, tiny_llama

PROMPTS = random_prompts(3)


@dataclass
class Clock:
    """Stands still but for passes, which take their rows, and more when they run first."""

    seconds_per_row: float = 0.01
    warm_up: float = 2.0
    now: float = 0.0
    longest: float = 0.0
    known: set[tuple[int, ...]] = field(default_factory=set)

    def perf_counter(self) -> float:
        return self.now

    def run(self, num_rows: list[int]) -> float:
        seconds = sum(num_rows) * self.seconds_per_row
        self.longest = max(self.longest, seconds)
        if tuple(num_rows) not in self.known:
            self.known.add(tuple(num_rows))
            seconds *= self.warm_up
        self.now += seconds
        return seconds


def test_every_shape_is_timed_for_both_models() -> None:
    core = make_core(tiny_llama(), tiny_llama(1))
    draft = core._speculation.proposer._model._drafter._runner  # type: ignore[attr-defined]
    costs = measure_step_costs(time_runners(core._runner, draft), max_num_seqs=8, max_num_tokens=64)
    assert list(costs.target.num_seqs) == [1, 2, 4, 8]
    assert list(costs.target.rows_per_seq) == [1, 2, 3, 5]
    assert costs.draft is not None
    assert list(costs.draft.rows_per_seq) == [1]
    assert all(0.0 < seconds < 60.0 for line in costs.target.seconds for seconds in line)


def test_a_slow_model_is_timed_for_small_batches_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_timer, "_BUDGET_S", 0.0)
    core = make_core(tiny_llama())
    costs = measure_step_costs(
        time_runners(core._runner, None), max_num_seqs=64, max_num_tokens=2048
    )
    assert list(costs.target.num_seqs) == [1]
    assert len(costs.target.by_rows(32, 100)) > 100


def test_whatever_is_timed_is_timed_again_when_it_has_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(step_timer, "time", clock)
    costs = measure_step_costs(Timing(clock.run, None), max_num_seqs=256, max_num_tokens=4096)
    assert clock.now <= step_timer._BUDGET_S + clock.longest * clock.warm_up
    assert list(costs.target.num_seqs) == [1, 2]
    seconds = [line[0] for line in costs.target.seconds]
    assert seconds == pytest.approx([0.01 * n for n in costs.target.num_seqs])


def test_a_fast_model_is_timed_in_less_than_the_longest_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(seconds_per_row=0.0001)
    monkeypatch.setattr(step_timer, "time", clock)
    measure_step_costs(Timing(clock.run, None), max_num_seqs=256, max_num_tokens=4096)
    assert clock.now < step_timer._LEAST_BUDGET_S + clock.longest * clock.warm_up


def costs_of(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> StepCosts:
    monkeypatch.setattr(step_timer, "time", clock)
    return measure_step_costs(Timing(clock.run, None), max_num_seqs=32, max_num_tokens=4096)


def test_what_is_left_out_is_read_off_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(seconds_per_row=0.0001)
    costs = costs_of(clock, monkeypatch)
    assert list(costs.target.num_seqs) == [1, 2, 4, 8, 16, 32]
    for num_seqs, seconds in zip(costs.target.num_seqs, costs.target.seconds, strict=True):
        assert seconds == pytest.approx([0.0001 * num_seqs * r for r in (1, 2, 3, 5, 9)])
    assert (5,) * 8 in clock.known
    assert (5,) * 16 not in clock.known
    assert costs.lopsided is not None
    for num_seqs in costs.target.num_seqs:
        for depth in (1, 2, 4, 9):
            expected = pytest.approx(0.0001 * (num_seqs - 1 + depth))
            assert costs.lopsided.at(num_seqs, depth) == expected
            assert costs.target_pass(num_seqs, num_seqs - 1 + depth, depth) == expected


def test_the_largest_batch_is_timed_with_fewer_rows_before_it_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(seconds_per_row=0.0006)
    costs = costs_of(clock, monkeypatch)
    assert list(costs.target.num_seqs) == [1, 4, 16, 32]
    assert (3,) * 32 in clock.known
    assert (9,) * 32 not in clock.known
    assert costs.target.at(32, 9) == pytest.approx(0.0006 * 32 * 9)
    assert clock.now < step_timer._LEAST_BUDGET_S + clock.longest * clock.warm_up


def test_what_was_measured_is_kept_and_words_stay_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    expected = generate(make_core(tiny_llama()), PROMPTS, greedy(20))
    core = make_core(tiny_llama(), tiny_llama(), speculation="auto", max_num_seqs=4)
    assert generate(core, PROMPTS, greedy(20)) == expected
    assert core.stats().estimated_speedup >= 1.0
    (kept,) = tmp_path.rglob("step-costs-*")
    before = kept.stat().st_mtime_ns
    make_core(tiny_llama(), tiny_llama(), speculation="auto", max_num_seqs=4)
    assert kept.stat().st_mtime_ns == before
