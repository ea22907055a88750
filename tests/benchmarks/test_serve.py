"""`outdraft bench serve`: what it asks a server, what it writes, and what it refuses by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httptools")

from benchmarks import serve
from benchmarks.serving.flags import plan_of
from benchmarks.serving.processes import engine_words
from engine.errors import ConfigError
from server.cli.main import main, make_parser
from tests.benchmarks.openai_double import OpenAIDouble, serving
from tests.benchmarks.programs import refused, run_benchmark

SHORT = ["--repeats", "2", "--warm-up", "1", "--max-tokens", "4", "--no-client-floor"]


def prompts(folder: Path, *texts: str) -> list[str]:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return ["--prompts", str(path)]


def measure(double: OpenAIDouble, folder: Path, *words: str) -> dict[str, Any]:
    with serving(double):
        return run_benchmark(serve, ["--url", double.url, *SHORT, *words], folder)


def test_points_have_the_same_requests_and_numbers_of_all_rounds(tmp_path: Path) -> None:
    double = OpenAIDouble()
    words = ["--concurrency", "1,3", "--requests", "6", "--slo-ttft-ms", "1e6"]
    content = measure(double, tmp_path, *prompts(tmp_path, "a b", "c"), *words)
    assert content["model"] == "double"
    assert [point["concurrency"] for point in content["points"]] == [1, 3]
    for point in content["points"]:
        numbers = point["numbers"]
        assert (len(point["rounds"]), point["errors"], point["short_answers"]) == (2, {}, 0)
        assert numbers["output_tokens_mean"]["median"] == 4.0
        assert numbers["tokens_per_event"]["median"] == 2.0
        assert numbers["tokens_per_target_pass"]["median"] == 2.0
        assert numbers["slo_share"] == {"median": 1.0, "low": 1.0, "high": 1.0}
        assert 0 < numbers["cached_share"]["median"] < 1
    assert double.most_at_once == 3
    measured = [body for body in double.bodies if "-round-" in body.get("cache_salt", "")]
    assert len(measured) == 2 * 2 * 6
    salts = {body["cache_salt"] for body in measured}
    assert len(salts) == 4
    for salt in salts:
        asked = {
            (b["messages"][0]["content"], b["seed"]) for b in measured if b["cache_salt"] == salt
        }
        assert asked == {("a b", 0), ("c", 1), ("a b", 2), ("c", 3), ("a b", 4), ("c", 5)}
    assert all(body["ignore_eos"] and body["temperature"] == 0.0 for body in measured)
    page = (tmp_path / "result.html").read_text()
    assert "prompts.jsonl" in page
    assert "TTFT p99, ms" in page


def test_what_a_server_refuses_is_left_out_and_said(tmp_path: Path) -> None:
    refused = {"ignore_eos", "cache_salt", "speculation", "continuous_usage_stats"}
    double = OpenAIDouble(refused=refused, stops_early=True)
    content = measure(double, tmp_path, "--concurrency", "1", "--requests", "2")
    assert content["fields_taken"] == []
    notes = " ".join(content["notes"])
    for name in ("ignore_eos", "cache_salt", "speculation.report", "continuous_usage_stats"):
        assert f"refuses {name}" in notes
    (point,) = content["points"]
    assert point["short_answers"] == 4
    assert point["numbers"]["tokens_per_target_pass"] is None
    assert point["numbers"]["output_tokens_mean"]["median"] == 3.0


def test_an_ignore_eos_that_is_taken_and_not_obeyed_is_said(tmp_path: Path) -> None:
    double = OpenAIDouble(stops_early=True)
    content = measure(double, tmp_path, "--concurrency", "1", "--requests", "2")
    assert "4 answers were shorter than asked for, in spite of ignore_eos" in content["notes"]


def test_errors_are_counted_by_kind_and_leave_no_numbers_behind(tmp_path: Path) -> None:
    words = prompts(tmp_path, "fine", "busy", "break", "fail", "hang")
    words += ["--concurrency", "5", "--requests", "5", "--repeats", "1", "--timeout-s", "1"]
    content = measure(OpenAIDouble(), tmp_path, *words)
    (point,) = content["points"]
    assert point["errors"] == {
        "HTTP 429": 1,
        "broken stream": 1,
        "error in stream": 1,
        "timeout": 1,
    }
    assert point["numbers"]["errors"]["median"] == 4.0
    assert point["numbers"]["output_tokens_mean"]["median"] == 4.0
    assert "errors at 5 at once: 1 x timeout" in content["notes"]


def test_a_trace_is_replayed_with_its_lengths(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = ["2023-11-16 18:15:46.68,100,6", "2023-11-16 18:15:47.68,31,2"]
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")
    double = OpenAIDouble()
    words = ["--url", "", "--trace", str(trace), "--trace-speed", "100", "--repeats", "1"]
    words += ["--warm-up", "0", "--no-client-floor", "--endpoint", "completions"]
    with serving(double):
        words[1] = double.url
        content = run_benchmark(serve, words, tmp_path)
    asked = [body for body in double.bodies if "-round-" in body.get("cache_salt", "")]
    # The double counts 3 tokens and 2 for each word.
    lengths = [(3 + 2 * len(body["prompt"].split()), body["max_tokens"]) for body in asked]
    assert lengths == [(pytest.approx(100, abs=1), 6), (31, 2)]
    assert content["points"][0]["load"] == "100x the trace"


def test_arrivals_are_open_and_the_client_floor_is_measured(tmp_path: Path) -> None:
    double = OpenAIDouble()
    words = ["--rate", "50,100", "--requests", "4", "--repeats", "1", "--max-tokens", "4"]
    with serving(double):
        content = run_benchmark(serve, ["--url", double.url, *words], tmp_path)
    assert [point["load"] for point in content["points"]] == ["50 per s", "100 per s"]
    assert content["points"][0]["numbers"]["late_ms_p99"]["median"] >= 0
    floor = content["client_floor"]["numbers"]
    assert floor["client_cpu_us_per_event"]["median"] > 0
    assert floor["output_tokens_mean"]["median"] == 4.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--concurrency", "1", "--rate", "2"], "rate: contradicts --concurrency"),
        (["--trace-speed", "2"], "trace-speed: there is no --trace"),
        (["--trace", "t.csv", "--prompts", "gsm8k"], "prompts: contradicts --trace"),
        (["--trace", "no-such.csv"], "trace: no-such.csv cannot be read"),
        (["--url", "http://h", "--draft", "ngram"], "draft: contradicts --url"),
        (["some/model", "--url", "http://h"], "model: contradicts --url"),
        (["--url", "http://h", "--config", "demo"], "config: contradicts --url"),
        (["--model-name", "m"], "model-name: there is no --url"),
        (["--api-key-env", "KEY"], "api-key-env: there is no --url"),
        (["--url", "http://h", "--api-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY is not set"),
        (["--url", "h:80"], "is no address"),
        (["--url", "http://127.0.0.1:9", "--no-client-floor"], "/models gives no list of models"),
        (["--data", "d"], "data: prompts chat do not come from there"),
        (["--prompts", "random:8:8", "--max-tokens", "4"], "max-tokens: random:8:8 says"),
        (["--prompts", ""], "'' is no file"),
        (["--prompts", "nothing"], "'nothing' is no file"),
        (["--concurrency", "1,x"], "concurrency: '1,x' is no list of numbers"),
        (["--concurrency", "0"], "concurrency: 0 is not above 0"),
        (["--concurrency", ""], "concurrency: there is no number"),
        (["--rate", "inf"], "rate: inf is not above 0"),
        (["--requests", "0"], "requests: 0 is below 1"),
        (["--repeats", "0"], "repeats: 0 is below 1"),
        (["--timeout-s", "0"], "timeout-s: 0 is not above 0"),
        (["--slo-ttft-ms", "-1"], "slo-ttft-ms: -1 is not above 0"),
        (["--temperature", "-1"], "temperature: -1 is below 0"),
        (["--speculation", "often"], "neither 'off', 'auto' nor a number"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(words: list[str], message: str) -> None:
    assert message in refused(serve, words)


def test_a_server_that_refuses_plain_requests_is_named_with_its_words(tmp_path: Path) -> None:
    with serving(OpenAIDouble(refused={"temperature"})) as double:
        told = refused(serve, ["--url", double.url, "--no-client-floor"])
    assert "HTTP 400" in told
    assert "temperature: unknown" in told


def test_our_own_server_is_started_with_the_flags_that_were_given() -> None:
    words = ["m", "--draft", "ngram,suffix", "--no-prefix-caching", "--speculation", "3"]
    args = make_parser().parse_args(["bench", "serve", *words, "--threads", "1"])
    assert plan_of(args).loads[0].concurrency == 1
    started = engine_words(args)
    served = make_parser().parse_args(["serve", *started])
    for name in ("model", "draft", "prefix_caching", "speculation", "threads"):
        if hasattr(args, name):
            assert getattr(served, name) == getattr(args, name)
    assert {"m", "--no-prefix-caching", "--speculation"} <= set(started)


@pytest.mark.timeout(300)
def test_our_own_server_is_measured(
    chat_pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = chat_pair[: chat_pair.index("--data-dir")]
    words = ["--concurrency", "1,2", "--requests", "3", "--max-tokens", "6", "--repeats", "1"]
    words += ["--warm-up", "1", "--no-client-floor", "--output", str(tmp_path), "--name", "own"]
    assert main(["bench", "serve", *models, *words]) == 0
    content = json.loads((tmp_path / "own.json").read_text())
    assert set(content["fields_taken"]) == {
        "ignore_eos",
        "continuous_usage_stats",
        "cache_salt",
        "speculation",
    }
    for point in content["points"]:
        numbers = point["numbers"]
        assert (point["errors"], point["short_answers"]) == ({}, 0)
        assert numbers["output_tokens_mean"]["median"] == 6.0
        assert numbers["tokens_per_target_pass"]["median"] >= 1.0
        assert numbers["cached_share"]["median"] == 0.0
    assert "TPOT p99" in capsys.readouterr().out


def test_a_server_that_cannot_start_is_told_with_its_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "serve", str(tmp_path), "--no-client-floor"]) == 1
    told = capsys.readouterr().err
    assert "the server ended" in told
    assert str(tmp_path) in told


def test_a_config_is_checked_before_a_server_is_started() -> None:
    with pytest.raises(ConfigError, match="no such configuration"):
        plan_of(make_parser().parse_args(["bench", "serve", "--config", "no-such"]))
