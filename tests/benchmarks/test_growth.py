"""How cost grows is measured part by part with tiny models, and laws of growth are told apart."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("httptools")

from benchmarks.growth import program
from benchmarks.growth.decoding import PLACES
from benchmarks.growth.growth_law import growth_law
from benchmarks.pages import Mark
from engine.errors import ContextLengthExceededError
from tests.benchmarks.programs import refused, run_benchmark

XS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
STEPS = ["--steps", "3", "--repeats", "2", "--short-context", "16"]


@pytest.fixture
def models(chat_pair: list[str]) -> list[str]:
    return chat_pair[: chat_pair.index("--data-dir")]


def marks(ys: list[float], noise: float = 0.0) -> list[Mark]:
    return [Mark(x, y, y - noise, y + noise) for x, y in zip(XS, ys, strict=True)]


def test_a_line_has_exponent_one_wherever_it_begins() -> None:
    law = growth_law(marks([5.0 + 0.5 * x for x in XS], noise=0.01))
    assert law.exponent == pytest.approx(1.0)
    assert (law.intercept, law.slope) == (pytest.approx(5.0), pytest.approx(0.5))
    assert law.is_at_most(1.1)


def test_a_square_grows_faster_than_a_line_and_a_root_slower() -> None:
    square = growth_law(marks([100.0 + x * x for x in XS]))
    assert square.exponent is not None
    assert 1.3 < square.exponent < 2.0
    assert not square.is_at_most(1.1)
    root = growth_law(marks([10.0 + x**0.5 for x in XS]))
    assert root.exponent is not None
    assert root.exponent < 1.0


def test_what_stays_inside_the_noise_does_not_grow() -> None:
    law = growth_law(marks([10.0, 10.1, 9.9, 10.2, 10.0, 10.1], noise=0.5))
    assert law.exponent is None
    assert law.exponent_text == "no growth beyond noise"
    assert law.is_at_most(1.1)


def test_a_point_inside_the_noise_does_not_decide() -> None:
    ys = [10.0 + x for x in XS]
    ys[1] = 10.0 + 1.0 + 1e-6
    loud = [Mark(m.x, m.y, m.y - 0.2, m.y + 0.2) for m in marks(ys)]
    assert growth_law(loud).exponent == pytest.approx(1.0, abs=0.05)


def test_steps_are_timed_over_context_and_load(models: list[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    words = ["--parts", "context,concurrency", "--contexts", "16,48,80", "--concurrency", "1,2,3"]
    words += ["--context-concurrency", "1,2", "--long-model", models[0], *STEPS]
    content = run_benchmark(program, [*models, *words], tmp_path)
    over_context, over_load = content["rows"]["context"], content["rows"]["concurrency"]
    asked = [(row["concurrency"], row["prompt_tokens"]) for row in over_context]
    assert asked == [(1, 16), (1, 48), (1, 80), (2, 16), (2, 48), (2, 80)]
    assert [row["concurrency"] for row in over_load] == [1, 2, 3]
    for row in over_context + over_load:
        assert row["context"] > row["prompt_tokens"]
        assert len(row["step_ms"]) == 2
        for step, host in zip(row["step_ms"], row["host_ms"], strict=True):
            assert 0 < host < step
    assert [v["bar"] for v in content["verdicts"]] == ["<= 1.1"] * 6
    assert (tmp_path / "result_context.png").stat().st_size > 0
    assert (tmp_path / "result_concurrency.png").stat().st_size > 0


def test_host_work_is_told_of_the_served_and_the_long_model(
    models: list[str], tmp_path: Path
) -> None:
    words = ["--parts", "host", "--host-concurrency", "1,2", "--temperatures", "0,1", *STEPS]
    content = run_benchmark(program, [*models, *words, "--long-model", models[0]], tmp_path)
    rows = content["rows"]["host"]
    assert len(rows) == len(content["verdicts"]) == 2 * 2 * 2
    for row in rows:
        assert set(row["parts_ms"]) == set(PLACES)
        assert all(0 < share < 1 for share in row["host_share"])
        assert all(spent > 0 for spent in row["detokenize_ms"])


@pytest.mark.timeout(300)
def test_memory_and_processor_time_of_a_real_server(models: list[str], tmp_path: Path) -> None:
    words = ["--parts", "memory,server", "--waiting", "20", "--running", "4", "--repeats", "1"]
    words += ["--idle-prompt-tokens", "8", "--idle-streams", "80", "--streams", "4"]
    words += ["--requests", "8", "--answer-tokens", "8", "--idle-s", "1"]
    content = run_benchmark(program, [*models, *words], tmp_path)
    waiting, running, *streams = content["rows"]["memory"]
    for row in (waiting, running):
        assert all(allocated > 0 for allocated in row["allocated_kb"])
    assert [row["process"] for row in streams] == ["server", "engine"]
    (spent,) = content["rows"]["server"]
    assert spent["num_tokens"] == [8 * 8]
    assert all(spent["busy"][name][0] > 0 for name in ("server", "engine"))
    assert len(content["verdicts"]) == 4 + 2


def test_contexts_beyond_the_model_are_refused(models: list[str]) -> None:
    with pytest.raises(ContextLengthExceededError, match="contexts: with the steps behind them"):
        refused(
            program,
            [*models, "--long-model", models[0], "--parts", "context", "--contexts", "8,9,600"],
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--parts", "speed"], "parts: 'speed' is not one of memory"),
        (["--contexts", "8,16"], "contexts: '8,16' needs numbers from 1, 3 at least"),
        (["--repeats", "0"], "repeats: 0 is below 1"),
        (["--temperatures", "-1"], "temperatures: -1 is below 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], message: str) -> None:
    assert message in refused(program, words)
