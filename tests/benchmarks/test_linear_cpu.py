"""Linear layers are timed by shape, rows and kind, and what cannot be measured is refused."""

from __future__ import annotations

from pathlib import Path

from benchmarks import linear_cpu
from tests.benchmarks.programs import refused, run_benchmark


def test_every_kind_is_timed_at_every_shape_and_number_of_rows(tmp_path: Path) -> None:
    words = ["--shapes", "48x32,16x8", "--rows", "1,3", "--rounds", "2", "--products", "2"]
    content = run_benchmark(linear_cpu, [*words, "--weights-kib", "16"], tmp_path)
    names = [kind.name for kind in linear_cpu.kinds()]
    timed = [(r["out_features"], r["in_features"], r["rows"], r["kind"]) for r in content["rows"]]
    shapes = [(48, 32), (16, 8)]
    assert timed == [(*shape, rows, name) for shape in shapes for rows in (1, 3) for name in names]
    for row in content["rows"]:
        assert len(row["microseconds"]) == 2
        assert min(row["microseconds"]) <= row["median"] <= max(row["microseconds"])
        assert row["median"] > 0.0


def test_what_cannot_be_measured_is_refused() -> None:
    assert "shapes: '48' needs outputs x inputs" in refused(linear_cpu, ["--shapes", "48"])
    assert "rows: 0 is below 1" in refused(linear_cpu, ["--rows", "0"])
    assert "weights-kib: 0 is below 1" in refused(linear_cpu, ["--weights-kib", "0"])
