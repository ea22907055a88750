"""`outdraft tune`: a configuration that loads, says where it was measured, and what it gives."""

from __future__ import annotations

from pathlib import Path

import pytest

import benchmarks.measured
from benchmarks.recommendation import recommend
from benchmarks.sweep import Measurement
from engine.config_files import load_config, load_config_file
from server.cli.main import main
from tests.benchmarks.measurements import measurement


def tune(sweep: list[str], *flags: str) -> int:
    return main(["tune", *sweep, *flags])


def choose(monkeypatch: pytest.MonkeyPatch, *measured: Measurement) -> None:
    """Let the choice rest on made-up numbers, as what tiny models gain is chance."""
    monkeypatch.setattr(benchmarks.measured, "recommend", lambda _: recommend(measured))


def test_writes_a_configuration_that_serves_the_best(
    models: Path,
    sweep: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    choose(monkeypatch, measurement("draft", None, 1.9), measurement("ngram", None, 1.1))
    path = tmp_path / "tuned.yaml"
    flags = ["--dtype", "float32", "--output", str(path)]
    assert tune(sweep, "--drafts", f"ngram,{models / 'draft'}", *flags) == 0
    file = load_config_file(path)
    assert file.config.model.model == str(models / "target")
    assert file.config.model.dtype == "float32"
    assert file.config.speculation.draft == str(models / "draft")
    assert file.config.speculation.is_auto
    assert file.config.cache.kv_cache_memory is None
    assert "1 thread, float32" in file.tested
    assert "draft (auto), 1.90x at 1 request" in file.notes
    assert "3 prompts of prompts.jsonl, at 1, 2 requests at once and temperature 0" in file.notes
    assert "ngram" in file.notes
    told = capsys.readouterr().out
    assert f"outdraft serve --config {path}" in told


def test_a_static_number_is_written_where_it_won(
    models: Path, sweep: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(monkeypatch, measurement("draft", None, 1.1), measurement("draft", 2, 1.9))
    path = tmp_path / "tuned.yaml"
    flags = ["--draft-vocabulary", "same", "--output", str(path)]
    assert tune(sweep, "--drafts", str(models / "draft"), *flags) == 0
    speculation = load_config(path).speculation
    assert (speculation.max_draft_tokens, speculation.draft_vocabulary) == (2, "same")


def test_speculation_is_off_where_nothing_helps(
    sweep: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(monkeypatch, measurement("ngram", None, 1.01))
    path = tmp_path / "tuned.yaml"
    assert tune(sweep, "--drafts", "ngram", "--output", str(path)) == 0
    file = load_config_file(path)
    assert file.config.speculation.is_off
    assert file.config.speculation.draft is None
    assert "max_draft_tokens: off\n" in path.read_text()
    assert "nobody gained 2 %" in file.notes


def test_a_candidate_that_cannot_be_loaded_is_left_out_by_name(
    sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tuned.yaml"
    assert tune(sweep, "--drafts", "./nowhere,ngram", "--output", str(path)) == 0
    assert "left out: ./nowhere: " in capsys.readouterr().out
    assert "could not be loaded: ./nowhere." in load_config_file(path).notes


def test_no_candidate_left_is_an_error(
    sweep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tuned.yaml"
    assert tune(sweep, "--drafts", "./nowhere", "--output", str(path)) == 1
    assert "none of them can be loaded" in " ".join(capsys.readouterr().err.split())
    assert not path.exists()


def test_the_file_is_called_after_the_model_and_never_overwritten(
    sweep: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tune(sweep, "--drafts", "ngram") == 0
    assert load_config("target.yaml").model.model == sweep[0]
    assert tune(sweep, "--drafts", "ngram") == 1
    assert "target.yaml exists already" in " ".join(capsys.readouterr().err.split())
