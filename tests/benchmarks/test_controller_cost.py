"""What the controller takes is timed by its parts, and profiled."""

from __future__ import annotations

from pathlib import Path

from benchmarks import controller_cost
from benchmarks.method_timer import timed
from engine.speculative.controller import Controller
from tests.benchmarks.programs import refused, run_benchmark

TINY = ["--warm-up-steps", "2", "--steps", "10", "--profile-steps", "10", "--max-tokens", "8"]


def test_every_part_is_timed_and_profiled(chat_pair: list[str], tmp_path: Path) -> None:
    words = [*chat_pair, *TINY, "--concurrency", "1,2", "--temperatures", "1", "--top", "5"]
    before = Controller.observe
    content = run_benchmark(controller_cost, words, tmp_path)
    assert Controller.observe is before
    for row in content["rows"]:
        assert set(row["parts_ms"]) == {"plan", "observe", "judge", "margins"}
        assert all(part > 0.0 for part in row["parts_ms"].values())
        assert row["total_ms"] < row["step_ms"]
        assert len(row["profile"]["step"]) == 5
        own = row["profile"]["controller"]
        assert all(entry["function"].startswith("engine/speculative/") for entry in own)
        assert row["is_met"] is None, "the bar is told at 32 requests alone"


class _Sleeper:
    def nap(self, length: int) -> int:
        return length


def test_a_timer_changes_nothing_and_goes_away() -> None:
    before = _Sleeper.nap
    with timed({"nap": (_Sleeper, "nap")}) as seconds:
        assert _Sleeper().nap(3) == 3
    assert seconds["nap"] > 0.0
    assert _Sleeper.nap is before


def test_what_cannot_be_measured_is_refused() -> None:
    assert "steps: 0 is below 1" in refused(controller_cost, ["--steps", "0"])
