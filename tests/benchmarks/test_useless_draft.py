"""A useless draft is made, measured beside `off`, and told of."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from benchmarks import useless_draft
from benchmarks.random_draft import write_random_draft
from tests.benchmarks.programs import refused, run_benchmark

TINY = ["--warm-up-steps", "14", "--steps", "20", "--parts", "2", "--max-tokens", "8"]


def test_every_load_is_measured(chat_pair: list[str], tmp_path: Path) -> None:
    words = [*chat_pair, *TINY, "--concurrency", "1,2", "--temperatures", "0,1"]
    content = run_benchmark(useless_draft, words, tmp_path)
    loads = [(row["temperature"], row["concurrency"]) for row in content["rows"]]
    assert loads == [(0.0, 1), (0.0, 2), (1.0, 1), (1.0, 2)]
    for row in content["rows"]:
        assert row["num_steps"] == 20
        assert len(row["speed_up_parts"]) == len(row["off_again_parts"]) == 2
        assert min(row["speed_up_parts"]) <= row["speed_up"] <= max(row["speed_up_parts"])
        assert row["num_wasted_tokens"] <= row["num_draft_tokens"]
        assert row["prompt_share"] <= row["draft_share"]
        assert row["is_met"] == (row["speed_up"] >= 0.98)


def test_the_draft_has_the_shape_but_not_the_weights(chat_pair: list[str], tmp_path: Path) -> None:
    good = chat_pair[chat_pair.index("--draft") + 1]
    paths = [write_random_draft(good, tmp_path / name) for name in ("one", "two")]
    models = [AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (good, *paths)]
    name = "model.layers.0.mlp.up_proj.weight"
    known, first, second = (model[name] for model in models)
    assert first.shape == known.shape
    assert first.equal(second)
    assert not first.equal(known)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--concurrency", "0"], "concurrency: 0 is below 1"),
        (["--steps", "1"], "steps: 1 is below 5"),
        (["--temperatures", ""], "temperatures: -1 is below 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], complaint: str) -> None:
    assert complaint in refused(useless_draft, words)
