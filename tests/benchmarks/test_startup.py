"""Starts are timed from the command to the first token, and imports are told apart by package."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("httptools")

from benchmarks import startup
from benchmarks.startup import checkpoint_folders, drop_from_cache, import_times, read_import_times
from engine.config import EngineConfig, ModelConfig, SpeculationConfig
from engine.errors import ModelLoadError
from tests.benchmarks.programs import refused, run_benchmark

LOG = """\
import time: self [us] | cumulative | imported package
import time:       200 |        200 |   torch._C
import time:       300 |        500 | torch
import time:        50 |         50 |   numpy
"""


@pytest.mark.timeout(300)
def test_cold_and_warm_starts_are_timed(chat_pair: list[str], tmp_path: Path) -> None:
    models = chat_pair[: chat_pair.index("--data-dir")]
    content = run_benchmark(startup, [*models, "--repeats", "1"], tmp_path)
    assert list(content["rounds"]) == ["cold", "warm"]
    for (numbers,) in content["rounds"].values():
        assert 0 < numbers["ready_s"] < numbers["first_token_s"]
        assert numbers["second_answer_ms"] > 0
    assert {"HTTP process", "engine process"} == set(content["imports_s"])
    assert content["imports_s"]["engine process"]["torch"] > 0


def test_import_times_are_added_up_by_package() -> None:
    found = read_import_times("p", LOG)
    assert found.by_package == {"torch": pytest.approx(0.0005), "numpy": pytest.approx(0.00005)}
    assert found.seconds == pytest.approx(0.00055)
    with pytest.raises(ModelLoadError, match="no_such_module"):
        import_times("p", "import no_such_module")


def test_a_cold_start_needs_a_local_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"1")
    speculation = SpeculationConfig(draft=f"ngram,{tmp_path}")
    local = EngineConfig(model=ModelConfig(model=str(tmp_path)), speculation=speculation)
    folders, notes = checkpoint_folders(local)
    assert (folders, notes) == ([tmp_path, tmp_path], [])
    drop_from_cache(folders)
    assert (tmp_path / "weights").read_bytes() == b"1"
    folders, notes = checkpoint_folders(EngineConfig(model=ModelConfig(model="org/name")))
    assert (folders, notes) == ([], ["no cold start: org/name is no local folder"])


def test_startup_refuses_by_name() -> None:
    assert "repeats: 0 is below 1" in refused(startup, ["--repeats", "0"])
    assert "start-s: 0 is not above 0" in refused(startup, ["--start-s", "0"])
