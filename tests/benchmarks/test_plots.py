"""Plots are drawn for every shape of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.measurements import measurement

pytest.importorskip("matplotlib")


@pytest.mark.parametrize("static", [(1, 2, 4), (4,), ()])
@pytest.mark.parametrize("drafters", [("ngram",), ("ngram", "draft")])
@pytest.mark.parametrize("loads", [(1,), (1, 2, 32)])
def test_four_files_are_written(
    tmp_path: Path, static: tuple[int, ...], drafters: tuple[str, ...], loads: tuple[int, ...]
) -> None:
    from benchmarks.plots import write_plots

    measured = [
        measurement(drafter, k, 1.0 if k == 0 else 1.3, concurrency=load, temperature=temperature)
        for temperature in (0.0, 1.0)
        for drafter in drafters
        for load in loads
        for k in (0, *static, None)
    ]
    paths = write_plots(measured, tmp_path / "speed")
    names = ["tokens_per_second", "speed_up", "tau", "acceptance"]
    assert [path.name for path in paths] == [f"speed_{name}.png" for name in names]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_acceptance_is_that_of_the_longest_static_drafts() -> None:
    from benchmarks.plots import _acceptance_by_position

    measured = [measurement("draft", k, 1.3) for k in (0, 2, 4, None)]
    assert _acceptance_by_position(measured) == [0.9, 0.88, 0.86, 0.84]
    assert len(_acceptance_by_position([measurement("draft", None, 1.3)])) == 3
