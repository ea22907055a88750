"""Background work is measured beside real-time answers, and each alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import background
from benchmarks.background import Seen, compare, numbers_of
from tests.benchmarks.programs import refused, run_benchmark


@pytest.fixture
def models(chat_pair: list[str]) -> list[str]:
    return chat_pair[: chat_pair.index("--data-dir")]


def test_every_load_is_measured_in_every_round(models: list[str], tmp_path: Path) -> None:
    words = ["--seconds", "0.6", "--repeats", "2", "--load", "0.5", "--max-num-seqs", "4"]
    lengths = ["--max-tokens", "3", "--batch-max-tokens", "6"]
    content = run_benchmark(background, [*models, *words, *lengths], tmp_path)
    rows = {row["load"]: row["rounds"] for row in content["rows"]}
    assert {load: len(rounds) for load, rounds in rows.items()} == {
        "real-time alone": 2,
        "batch alone": 2,
        "both": 2,
    }
    for load, rounds in rows.items():
        for numbers in rounds:
            assert (numbers["real_time_tokens_per_s"] > 0) is (load != "batch alone")
            assert (numbers["ttft_ms_p99"] is None) is (load == "batch alone")
            parts = numbers["batch_tokens_per_s"] + numbers["real_time_tokens_per_s"]
            assert numbers["tokens_per_s"] == pytest.approx(parts, abs=0.001)
    assert all(numbers["batch_tokens_per_s"] == 0 for numbers in rows["real-time alone"])
    assert all(numbers["batch_tokens_per_s"] > 0 for numbers in rows["batch alone"])
    assert content["comparison"]["tokens_per_s over batch alone"] > 0
    assert "both" in (tmp_path / "result.html").read_text()


def test_numbers_follow_from_what_was_seen() -> None:
    seen = Seen([0.1, 0.3], [0.01, 0.02, 0.03], 2, {False: 5, True: 20}, seconds=2.0)
    numbers = numbers_of(seen)
    assert numbers["ttft_ms_p50"] == pytest.approx(200.0)
    assert numbers["itl_ms_p50"] == pytest.approx(20.0)
    assert numbers["tokens_per_s"] == pytest.approx(12.5)
    assert numbers["batch_tokens_per_s"] == pytest.approx(10.0)


def test_both_are_compared_with_each_alone_round_by_round() -> None:
    rounds = {
        "real-time alone": [{"itl_ms_p99": 10.0}, {"itl_ms_p99": 20.0}, {"itl_ms_p99": None}],
        "batch alone": [{"tokens_per_s": 100.0}] * 3,
        "both": [
            {"itl_ms_p99": 11.0, "tokens_per_s": 90.0},
            {"itl_ms_p99": 26.0, "tokens_per_s": 95.0},
            {"itl_ms_p99": 9.0, "tokens_per_s": 80.0},
        ],
    }
    found = compare(rounds)
    assert found == {
        "itl_ms_p99 over real-time alone": pytest.approx(1.2),
        "tokens_per_s over batch alone": pytest.approx(0.9),
    }


@pytest.mark.parametrize(
    ("words", "named"),
    [(["--load", "0"], "load"), (["--seconds", "-1"], "seconds"), (["--repeats", "0"], "repeats")],
)
def test_refuses_what_cannot_be_measured(words: list[str], named: str) -> None:
    assert named in refused(background, words)
