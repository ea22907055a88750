"""Repeated traffic: tasks are edited, rounds are told apart, and repetition is counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import agent_traffic
from benchmarks.agent_tasks import edited
from benchmarks.workloads import distinct_openings
from tests.benchmarks.programs import refused, run_benchmark

TINY = ["--tasks", "4", "--rounds", "3", "--max-tokens", "24", "--concurrency", "1,2"]


def test_answers_that_come_again_are_drafted_whole(chat_pair: list[str], tmp_path: Path) -> None:
    content = run_benchmark(agent_traffic, [*chat_pair, *TINY], tmp_path)
    rows = {(r["kind"], r["concurrency"], r["lane"], r["name"]): r for r in content["rows"]}
    assert len(rows) == 2 * 2 * 3 * 4
    for (kind, _, lane, name), row in rows.items():
        assert row["num_answers"] == (8 if name == "2 on" else 4)
        assert row["num_equal"] <= row["num_nearly"] <= row["num_answers"]
        if name == "1":
            assert row["num_nearly"] == 0
        elif kind == "same":
            assert row["num_equal"] == row["num_answers"]
            assert row["tokens_per_pass_nearly"] == row["tokens_per_pass"]
        if lane == "off":
            assert (row["tokens_per_pass"], row["speed_up"]) == (1.0, 1.0)
    assert rows["same", 1, "16", "3"]["tokens_per_pass"] > 4.0


def test_edits_are_small_and_no_round_is_like_another(tmp_path: Path) -> None:
    for task_index, task in enumerate(distinct_openings(tmp_path, 16)):
        rounds = [edited(task, index, task_index) for index in range(8)]
        assert rounds[0] == task
        texts = [opening[-1]["content"] for opening in rounds]
        assert len(set(texts)) == len(texts)
        assert all(abs(len(text) - len(texts[0])) < 40 for text in texts)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--kinds", "odd"], "kinds: 'odd' is not one of edited, same"),
        (["--tasks", "2", "--concurrency", "2"], "tasks: 2 is below 4"),
        (["--rounds", "0"], "rounds: 0 is below 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], complaint: str) -> None:
    assert complaint in refused(agent_traffic, words)
