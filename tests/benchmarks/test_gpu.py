"""The GPU benchmarks run whole at tiny shapes on a CPU, also where parts fail or time runs out."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks.gpu import __main__ as program
from benchmarks.gpu import profile
from benchmarks.gpu.correctness import run_tests
from benchmarks.gpu.part import FAILED, OK, RUNNING, SKIPPED, Notes, Outcome, Part, Quantity
from benchmarks.gpu.parts import PARTS, chosen
from benchmarks.gpu.run_file import RunFile
from benchmarks.gpu.runner import Runner
from benchmarks.gpu.sizes import TINY
from benchmarks.gpu.throughput_plot import draw_throughput
from benchmarks.gpu.trace import Trace, Work
from benchmarks.gpu.verdict_table import verdict_table
from benchmarks.gpu.workshop import Workshop

TINY_WORDS = ["--stage", "2", "--device", "cpu", "--shape", "tiny"]
# Peers warn of end tokens, kernels may not be there, and a profiler needs seconds.
QUICK = "ceilings,throughput,prefill,shapes"


def note_one(_workshop: Workshop, notes: Notes) -> None:
    notes.add("one", 1.0, bar=2.0)


def fail_after_a_note(_workshop: Workshop, notes: Notes) -> None:
    notes.add("before it failed", 3.0)
    raise RuntimeError("broken on purpose")


class Bench:
    """A runner over parts of a test, and what it wrote."""

    def __init__(self, folder: Path, *, budget: float = 60.0) -> None:
        self.file = RunFile("result", folder, {})
        self.num_restarts = 0
        self.restarted = threading.Event()
        workshop = Workshop(torch.device("cpu"), TINY, torch.float32)
        self.console = Console(record=True, width=200)
        deadline = time.monotonic() + budget
        self.runner = Runner(workshop, self.file, deadline, self.console, self.start_anew)

    def start_anew(self) -> None:
        self.num_restarts += 1
        self.restarted.set()

    def run(self, *parts: Part) -> dict[str, dict[str, object]]:
        self.runner.run(parts)
        return {part["name"]: part for part in json.loads(self.file.path.read_text())["parts"]}


@pytest.mark.usefixtures("own_cache")
def test_every_quick_part_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main([*TINY_WORDS, "--only", QUICK, "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "gpu_tiny.json").read_text())
    assert {part["status"] for part in content["parts"]} == {OK}
    names = {part["name"] for part in content["parts"]}
    assert names == {part.name for part in chosen(QUICK.split(","))}
    assert all(part["quantities"] for part in content["parts"])
    assert all(q["value"] > 0 for part in content["parts"] for q in part["quantities"])
    assert content["provenance"]["git_sha"]
    assert "these numbers mean nothing" in capsys.readouterr().out


def test_the_decode_part_measures_what_a_token_reads(tmp_path: Path) -> None:
    program.main([*TINY_WORDS, "--only", "decode", "--out", str(tmp_path)])
    (part,) = json.loads((tmp_path / "gpu_tiny.json").read_text())["parts"]
    by_name = {q["name"]: q for q in part["quantities"]}
    assert part["status"] == OK
    assert by_name["8B decode, batch 1, of the roofline"]["bar"] == 0.9


def test_a_part_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    parts = bench.run(Part("bad", 0, fail_after_a_note), Part("good", 0, note_one))
    assert (parts["bad"]["status"], parts["good"]["status"]) == (FAILED, OK)
    assert "broken on purpose" in str(parts["bad"]["error"])
    assert parts["bad"]["quantities"][0]["name"] == "before it failed"
    assert bench.num_restarts == 0


def test_parts_that_do_not_fit_the_budget_are_skipped_by_name(tmp_path: Path) -> None:
    bench = Bench(tmp_path, budget=5)
    parts = bench.run(Part("long", 100, note_one), Part("short", 1, note_one))
    assert (parts["long"]["status"], parts["short"]["status"]) == (SKIPPED, OK)
    assert "needs about 100 s" in str(parts["long"]["error"])
    assert "long: skipped" in bench.console.export_text()


def test_results_are_written_while_a_part_runs(tmp_path: Path) -> None:
    seen = []

    def look(_workshop: Workshop, _notes: Notes) -> None:
        content = json.loads((tmp_path / "result.json").read_text())
        seen.extend((part["name"], part["status"]) for part in content["parts"])

    Bench(tmp_path).run(Part("first", 0, note_one), Part("second", 0, look))
    assert seen == [("first", OK), ("second", RUNNING)]


def test_a_part_that_never_ends_starts_the_process_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.gpu.runner._PATIENCE_S", 0.05)
    bench = Bench(tmp_path)

    def hang(_workshop: Workshop, _notes: Notes) -> None:
        assert bench.restarted.wait(10)
        content = json.loads((tmp_path / "result.json").read_text())
        assert "did not end within" in content["parts"][0]["error"]

    bench.run(Part("endless", 0, hang))
    assert bench.num_restarts == 1


def test_a_device_that_answers_no_more_starts_the_process_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    bench = Bench(tmp_path)
    monkeypatch.setattr("benchmarks.gpu.runner.synchronize", broken)
    bench.run(Part("bad", 0, fail_after_a_note))
    assert bench.num_restarts == 1


def test_a_run_goes_on_from_its_file(tmp_path: Path) -> None:
    Bench(tmp_path).run(Part("first", 0, note_one))
    bench = Bench(tmp_path)
    bench.file.load()
    parts = bench.run(Part("first", 0, fail_after_a_note), Part("second", 0, note_one))
    assert (parts["first"]["status"], parts["second"]["status"]) == (OK, OK)
    assert bench.file.outcomes[0].notes.quantities[0] == Quantity(name="one", value=1.0, bar=2.0)


def test_parts_are_chosen_by_name_and_by_kind() -> None:
    assert [part.name for part in chosen(["decode"])] == ["decode"]
    assert {part.name.partition(".")[0] for part in chosen(["kernels"])} == {"kernels"}
    assert chosen([]) == list(PARTS)
    with pytest.raises(ValueError, match="'kernel' is none of"):
        chosen(["kernel"])


def test_the_table_says_what_is_met() -> None:
    notes = Notes()
    notes.add("fast", 2.0, bar=1.0)
    notes.add("slow", 0.5, bar=1.0, spread=(0.4, 0.6))
    console = Console(record=True, width=200)
    outcomes = [Outcome("some", OK, notes=notes), Outcome("none", SKIPPED, error="no time")]
    console.print(verdict_table(outcomes, "title"))
    lines = console.export_text().splitlines()
    assert any("fast" in line and "met" in line for line in lines)
    assert any("0.500 (0.400-0.600)" in line and "missed" in line for line in lines)
    assert any("no time" in line and "skipped" in line for line in lines)


def test_a_trace_tells_busy_time_from_gaps() -> None:
    trace = Trace([Work(0, 4, "a"), Work(2, 5, "b"), Work(9, 10, "a")])
    assert (trace.span_us, trace.busy_us) == (10, 6)
    assert trace.kernels(1) == [("a", 5, 2)]
    assert trace.gaps(1) == [(4, "a")]


def test_a_profile_without_a_device_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--device", "cpu", "--shape", "tiny", "--steps", "2", "--out", str(tmp_path)]
    assert profile.main(words) == 0
    assert "no work on a device" in capsys.readouterr().out
    assert (tmp_path / "gpu_profile.json.gz").is_file()


def test_throughput_is_drawn_where_there_is_some(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    notes = Notes()
    for lane in ("off", "auto", "k=2"):
        for load in (1, 8):
            notes.detail("throughput", lane=lane, concurrency=load, rates=[load * 10.0])
    (path,) = draw_throughput([Outcome("some", OK, notes=notes)], tmp_path / "gpu")
    assert path.stat().st_size > 1000
    assert draw_throughput([Outcome("none", OK)], tmp_path / "gpu") == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts on tests being skipped")
def test_stage_1_counts_no_proof_where_every_test_was_skipped(tmp_path: Path) -> None:
    target = ["tests/kernels/test_paged_attention.py"]
    outcome = run_tests(tmp_path, time.monotonic() + 120, target)
    counts = {quantity.name: quantity.value for quantity in outcome.notes.quantities}
    assert counts["tests passed"] == counts["tests failed"] == 0
    assert counts["tests skipped"] > 10
    assert outcome.status == FAILED


def test_stage_1_says_when_time_ran_out(tmp_path: Path) -> None:
    outcome = run_tests(tmp_path, time.monotonic(), ["tests/kernels"])
    assert outcome.status == FAILED
    assert outcome.error is not None
    assert "did not end in time" in outcome.error
