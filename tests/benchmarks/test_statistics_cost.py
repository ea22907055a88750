"""What listeners cost is measured on a real server, by turns, and told with its bar."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("httptools")

from benchmarks import statistics_cost
from tests.benchmarks.programs import refused, run_benchmark


@pytest.mark.timeout(300)
def test_rounds_alternate_and_listeners_are_told(chat_pair: list[str], tmp_path: Path) -> None:
    words = chat_pair[: chat_pair.index("--data-dir")]
    words += ["--listeners", "2", "--repeats", "2", "--streams", "2", "--requests", "4"]
    words += ["--answer-tokens", "8", "--interval-s", "0.25"]
    content = run_benchmark(statistics_cost, words, tmp_path)
    assert len(content["rows"]) == 2
    for row in content["rows"]:
        assert row["num_events"] >= 2
        for kind in ("alone", "watched"):
            assert row[kind]["tokens_per_second"] > 0
    assert content["verdict"]["bar"] == "< 1%"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--listeners", "0"], "listeners: 0 is below 1"),
        (["--interval-s", "0.1"], "interval-s: 0.1 is below 0.25"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], message: str) -> None:
    assert message in refused(statistics_cost, words)
