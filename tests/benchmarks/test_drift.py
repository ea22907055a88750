"""A drifting workload: phases change what is drafted, and recovery is read off the steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import drift
from benchmarks.drift_series import Phase, Trace
from benchmarks.side_by_side import StepNote
from tests.benchmarks.programs import refused, run_benchmark

TINY = [
    *("--phase-steps", "16", "--rounds", "2", "--window", "4", "--concurrency", "2"),
    *("--max-tokens", "8", "--copies", "2"),
]


def phase_of(step_seconds: Sequence[float]) -> Phase:
    """Make a phase in which `off` takes a second for what `auto` does in a step."""
    ends = [sum(step_seconds[:count]) for count in range(len(step_seconds) + 1)]
    seconds = {"off": list(map(float, range(len(ends)))), "auto": ends}
    notes = [StepNote(2, {"suffix": 6}, 1.5, 0.1)] * len(step_seconds)
    return Phase("made up", [Trace(seconds, notes)] * 2)


def test_both_scenarios_tell_speeds_and_recovery(chat_pair: list[str], tmp_path: Path) -> None:
    content = run_benchmark(drift, [*chat_pair, *TINY], tmp_path)
    assert list(content["scenarios"]) == ["seen", "synthetic"]
    names = [[row["phase"] for row in rows] for rows in content["scenarios"].values()]
    assert names == [
        ["seen before", "new", "seen before"],
        ["0.9 accepted", "0.1 accepted", "0.9 accepted"],
    ]
    for row in (row for rows in content["scenarios"].values() for row in rows):
        assert row["num_steps"] == 16
        assert set(row["steady_speed"]) == {"4", "auto"}
        assert len(row["running_means"]["speed"]["auto"]) == 13
    seen, synthetic = (rows[0]["steady_drafts"] for rows in content["scenarios"].values())
    assert seen["suffix"] > 0.0
    assert list(synthetic) == ["draft_model"]


def test_plots_come_where_matplotlib_is(chat_pair: list[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run_benchmark(drift, [*chat_pair, *TINY, "--scenarios", "synthetic"], tmp_path)
    assert (tmp_path / "result_synthetic.png").read_bytes().startswith(b"\x89PNG")


def test_speeds_and_drafts_are_those_of_the_steps() -> None:
    phase = phase_of([1.0] * 4 + [0.5] * 12)
    assert phase.speed("auto", phase.steady) == 2.0
    assert phase.speed("auto", (2, 6)) == pytest.approx(4 / 3)
    assert phase.expected((0, 4)) == 1.5
    assert phase.drafts("suffix", (0, 4)) == 3.0
    assert phase.drafts("nobody", (0, 4)) == 0.0


def test_recovery_is_the_first_step_from_which_it_is_nearly_as_fast_as_later() -> None:
    assert phase_of([1.0] * 4 + [0.5] * 12).recovered_after(2) == 4
    assert phase_of([0.5] * 16).recovered_after(2) == 0
    # Where the last half has both speeds, its mean is steady.
    assert phase_of([1.0] * 12 + [0.5] * 4).recovered_after(2) == 11


def test_who_falls_back_has_recovered_but_not_settled() -> None:
    phase = phase_of([0.5] * 2 + [1.0] * 3 + [0.5] * 11)
    assert phase.recovered_after(2) == 0
    assert phase.settled_after(2) == 5
    assert phase_of([0.5] * 16).settled_after(2) == 0
    assert phase_of([1.0] * 12 + [0.5] * 4).settled_after(2) is None


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--scenarios", "storm"], "scenarios: 'storm' is not one of seen, synthetic"),
        (["--rates", "0.9"], "rates: '0.9' are not two"),
        (["--phase-steps", "20"], "phase-steps: 20 is below 32"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], complaint: str) -> None:
    assert complaint in refused(drift, words)
