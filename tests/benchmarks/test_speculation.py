"""`outdraft bench speculation`: tables, JSON, plots and a sentence, or one line of what failed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from server.cli.main import main


def bench(sweep: list[str], *flags: str) -> int:
    return main(["bench", "speculation", *sweep, *flags])


def test_measures_every_lane_at_every_point_and_says_what_to_run(
    models: Path, sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drafts = f"ngram,{models / 'draft'},layer-skip,suffix+{models / 'draft'}"
    assert bench(sweep, "--drafts", drafts, "--output", str(tmp_path), "--name", "tiny") == 0
    content = json.loads((tmp_path / "tiny.json").read_text())
    assert {"provenance", "settings", "workloads", "rows", "recommendation"} == set(content)
    assert content["provenance"]["versions"]["outdraft"]
    assert content["workloads"] == {"prompts": "3 prompts of prompts.jsonl"}
    assert "func" not in content["settings"]
    points = [(r["drafter"], r["concurrency"], r["lane"]) for r in content["rows"]]
    assert points == [
        (drafter, load, lane)
        for drafter in ("ngram", "draft", "layer-skip", "suffix+draft")
        for load in (1, 2)
        for lane in ("off", "2", "auto")
    ]
    for row in content["rows"]:
        assert row["num_tokens"] >= 24
        low, high = row["speed_up_spread"]
        assert low <= row["speed_up"] <= high
        assert len(row["tokens_per_second"]) == 2
        assert row["num_equal_answers"] == row["num_compared_answers"] > 0
        if row["lane"] == "off":
            assert (row["speed_up"], row["tokens_per_target_pass"]) == (1.0, 1.0)
            assert row["drafted_per_position"] == []
    told = capsys.readouterr().out
    assert content["recommendation"]["sentence"] in told
    assert told.rstrip().endswith(content["recommendation"]["sentence"])
    assert "prompts, T=0, ngram: tau" in " ".join(told.split())


def test_plots_come_where_matplotlib_is(sweep: list[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert bench(sweep, "--drafts", "ngram", "--output", str(tmp_path)) == 0
    assert len(list(tmp_path.glob("speculation_*.png"))) == 4


def test_a_line_says_how_to_get_plots_where_matplotlib_is_missing(
    sweep: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "benchmarks.plots", raising=False)
    assert bench(sweep, "--drafts", "ngram", "--output", str(tmp_path)) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["speculation.json"]
    assert "pip install 'outdraft[bench]'" in capsys.readouterr().out


def test_static_numbers_are_left_out_where_nobody_drafts(sweep: list[str], tmp_path: Path) -> None:
    assert bench(sweep, "--drafts", "none", "--output", str(tmp_path)) == 0
    content = json.loads((tmp_path / "speculation.json").read_text())
    assert {row["lane"] for row in content["rows"]} == {"off", "auto"}
    assert content["recommendation"]["draft_tokens"] == 0


def test_results_go_where_the_environment_says(
    sweep: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    assert bench(sweep, "--drafts", "ngram") == 0
    assert (tmp_path / "out/speculation.json").is_file()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--concurrency", "1,0"], "concurrency: 0 is below 1"),
        (["--concurrency", ""], "concurrency: give at least one number"),
        (["--temperatures", "warm"], "temperatures: 'warm' is no list of numbers"),
        (["--temperatures", "1,1"], "temperatures: a number stands twice"),
        (["--draft-tokens", "0,4"], "draft-tokens: 0 is below 1"),
        (["--draft-tokens", "40"], "max_draft_tokens: 40 exceeds 32"),
        (["--tokens", "1"], "tokens: 1 is below 2"),
        (["--parts", "0"], "parts: 0 is below 1"),
        (["--max-tokens", "400"], "prompts: a prompt of"),
        (["--workload", "chess"], "workload: 'chess' is not one of chat, copy"),
        (["--drafts", "ngram,./nowhere"], "drafts: ./nowhere"),
        (["--drafts", "ngram+other+draft"], "'ngram,other,draft' cannot be honoured"),
        (["--prompts", "nowhere.jsonl"], "prompts: cannot read nowhere.jsonl"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(
    sweep: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    complaint: str,
) -> None:
    assert bench(sweep, "--output", str(tmp_path / "out"), *flags) == 1
    told = capsys.readouterr().err
    assert complaint in " ".join(told.split())
    assert not (tmp_path / "out").exists()


def test_a_file_without_prompts_is_refused(
    sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    assert bench(sweep, "--prompts", str(tmp_path / "empty.jsonl")) == 1
    assert "holds no prompts" in " ".join(capsys.readouterr().err.split())


def test_built_in_prompts_need_a_tokenizer(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "speculation", str(models / "target"), "--threads", "1"]) == 1
    assert "has no tokenizer" in " ".join(capsys.readouterr().err.split())


def test_the_module_is_the_same_program(root: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.speculation", "--concurrency", "0"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "ConfigError: concurrency: 0 is below 1.\n"
