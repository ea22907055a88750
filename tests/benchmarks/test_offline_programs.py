"""Throughput, latency and start-up are measured with tiny models, and refuse what they cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import latency, throughput
from benchmarks.latency import Batch, batch_numbers
from tests.benchmarks.programs import refused, run_benchmark


@pytest.fixture
def models(chat_pair: list[str]) -> list[str]:
    return chat_pair[: chat_pair.index("--data-dir")]


def test_throughput_counts_all_answers_of_each_round(models: list[str], tmp_path: Path) -> None:
    words = ["--prompts", "random:9:5", "--requests", "4", "--repeats", "2"]
    content = run_benchmark(throughput, [*models, *words, "--price-per-hour", "1"], tmp_path)
    assert len(content["rounds"]) == 2
    for numbers in content["rounds"]:
        assert (numbers["output_tokens"], numbers["prompt_tokens"]) == (20.0, 36.0)
        assert numbers["tokens_per_s"] > 0
        assert numbers["cost_per_million_tokens"] > 0
        assert numbers["tokens_per_target_pass"] >= 1.0
    assert content["facts"]["prefix cache"] == "off"
    assert "tokens/s" in (tmp_path / "result.html").read_text()


def test_throughput_asks_as_chats_and_with_the_prefix_cache_where_told(
    models: list[str], tmp_path: Path
) -> None:
    words = ["--requests", "3", "--repeats", "1", "--max-tokens", "4", "--prefix-caching"]
    content = run_benchmark(throughput, [*models, *words], tmp_path)
    (numbers,) = content["rounds"]
    assert numbers["output_tokens"] == 12.0
    assert content["facts"]["prefix cache"] == "on"


def test_latency_is_told_by_batch_size(models: list[str], tmp_path: Path) -> None:
    words = ["--batch-sizes", "1,3", "--input-tokens", "8", "--output-tokens", "4"]
    content = run_benchmark(latency, [*models, *words, "--repeats", "2"], tmp_path)
    assert [row["batch_size"] for row in content["rows"]] == [1, 3]
    for row in content["rows"]:
        assert len(row["rounds"]) == 2
        for numbers in row["rounds"]:
            assert 0 < numbers["first_token_ms"] < numbers["batch_ms"]


def test_numbers_of_a_batch_follow_from_its_steps() -> None:
    batch = Batch(
        steps_s=[0.1, 0.2, 0.4, 0.5],
        times_s={"a": [0.1, 0.2, 0.4], "b": [0.2, 0.4, 0.5]},
        num_tokens={"a": 4, "b": 7},
    )
    numbers = batch_numbers(batch)
    assert numbers["first_token_ms"] == pytest.approx(200.0)
    # 300 ms for 3 tokens, 300 ms for 6.
    assert numbers["per_token_ms_p50"] == pytest.approx(75.0)
    assert numbers["step_ms_p50"] == pytest.approx(150.0)
    assert numbers["tokens_per_s"] == pytest.approx(22.0)
    assert numbers["tokens_per_step"] == pytest.approx(11 / 6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--requests", "0"], "requests: 0 is below 1"),
        (["--price-per-hour", "0"], "price-per-hour: 0 is not above 0"),
        (["--data", "x"], "data: prompts chat do not come from there"),
        (["--prompts", "random:8:8", "--max-tokens", "2"], "max-tokens: random:8:8 says"),
    ],
)
def test_throughput_refuses_by_name(words: list[str], message: str) -> None:
    assert message in refused(throughput, words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch-sizes", "0,1"], "batch-sizes: '0,1' needs numbers from 1"),
        (["--batch-sizes", "4", "--max-num-seqs", "2"], "4 is above --max-num-seqs 2"),
        (["--output-tokens", "1"], "output-tokens: 1 is below 2"),
    ],
)
def test_latency_refuses_by_name(words: list[str], message: str) -> None:
    assert message in refused(latency, words)
