"""Timing passes at start-up: a table of what was run, kept on disk, within its time."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.runner import step_timer
from engine.runner.step_timer import measure_step_costs, time_runners
from tests.tiny_models import generate, greedy, make_core, random_prompts, tiny_llama

PROMPTS = random_prompts(3)


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
