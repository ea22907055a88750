"""`outdraft generate`: a file in, a file out, counts beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.cli.main import main
from tests.tiny_models import random_prompts, tiny_llama

PROMPTS = random_prompts(3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny target and draft, and an input file."""
    top = tmp_path_factory.mktemp("generate")
    tiny_llama(0).save_pretrained(top / "target")
    tiny_llama(1).save_pretrained(top / "draft")
    rows = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    (top / "in.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return top


def run(folder: Path, *flags: str, draft: bool = True) -> tuple[list[dict[str, Any]], int]:
    """Run the command; its answers and exit code."""
    command = ["generate", str(folder / "target"), "--input", str(folder / "in.jsonl")]
    command += ["--output", str(folder / "out.jsonl"), "--stats", str(folder / "stats.json")]
    command += ["--kv-cache-memory", "16MiB", "--threads", "1", "--max-tokens", "10"]
    command += ["--ignore-eos", *flags]
    if draft:
        command += ["--draft", str(folder / "draft")]
    code = main(command)
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()], code


def test_writes_answers_in_order_with_their_counts(folder: Path) -> None:
    rows, code = run(folder, "--temperature", "0", "--speculation", "3", "--n", "2", "--seed", "5")
    assert code == 0
    assert [row["index"] for row in rows] == [0, 1, 2]
    for row, prompt in zip(rows, PROMPTS, strict=True):
        assert [len(answer["token_ids"]) for answer in row["outputs"]] == [10, 10]
        assert {answer["finish_reason"] for answer in row["outputs"]} == {"length"}
        assert {answer["text"] for answer in row["outputs"]} == {None}
        assert row["usage"]["prompt_tokens"] == len(prompt)
        assert row["usage"]["completion_tokens"] == 20
        assert row["metrics"]["speculative_decoding"]["num_draft_tokens"] > 0
    stats = json.loads((folder / "stats.json").read_text())
    assert stats["output_tokens"] == 60
    assert stats["generation_seconds"] > 0
    assert stats["target_passes"] + stats["num_accepted_tokens"] == 60
    assert stats["num_draft_tokens"] == sum(stats["num_draft_tokens_per_pos"])


def test_same_seed_same_words_with_speculation_and_without(folder: Path) -> None:
    sampling = ("--temperature", "0.9", "--top-p", "0.9", "--seed", "3")
    with_drafts, _ = run(folder, *sampling, "--speculation", "4", "--max-num-seqs", "2")
    without, _ = run(folder, *sampling, "--speculation", "off", draft=False)
    assert [r["outputs"] for r in with_drafts] == [r["outputs"] for r in without]


def test_synthetic_acceptance_is_told_in_answers_counts_and_summary(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drafts = ("--speculation", "3")
    rows, _ = run(folder, *drafts)
    assert "synthetic" not in json.dumps(rows) + (folder / "stats.json").read_text()
    assert "synthetic" not in capsys.readouterr().err
    rows, code = run(folder, *drafts, "--synthetic-acceptance", "1,0")
    assert code == 0
    for row in rows:
        assert row["metrics"]["speculative_decoding"]["synthetic_acceptance"] == [1.0, 0.0]
    assert json.loads((folder / "stats.json").read_text())["synthetic_acceptance"] == [1.0, 0.0]
    told = " ".join(capsys.readouterr().err.split())
    assert "synthetic acceptance 1.0,0.0: the answers are not the model's" in told


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2 is no JSON"),
        ('{"text": "hello"}', "line 2 needs exactly one of prompt"),
        ('{"prompt_token_ids": [1, "a"]}', "line 2: prompt_token_ids"),
        ('{"prompt_token_ids": [1, 9999]}', "token id 9999"),
        ('{"prompt": "hello"}', "no tokenizer"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, complaint: str
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"prompt_token_ids": PROMPTS[0]}) + "\n" + line + "\n")
    command = ["generate", str(folder / "target"), "--input", str(source)]
    code = main([*command, "--output", str(output), "--kv-cache-memory", "16MiB"])
    assert code != 0
    assert complaint in " ".join(capsys.readouterr().err.split())
    assert not output.exists()
