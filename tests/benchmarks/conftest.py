"""A tiny target and draft on disk, and prompts for them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.peers import environment
from benchmarks.peers.environment import ENVIRONMENTS, install
from tests.byte_tokenizer import byte_tokenizer
from tests.tiny_models import random_prompts, tiny_llama

_FAKE_PEER = Path(__file__).with_name("fake_peer.py")
FLAGS = [
    *("--concurrency", "1,2", "--temperatures", "0", "--draft-tokens", "2", "--threads", "1"),
    *("--tokens", "24", "--warm-up-tokens", "4", "--max-tokens", "8", "--parts", "2"),
]
"""A sweep that takes a second."""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `target`, `draft` and `prompts.jsonl`."""
    top = tmp_path_factory.mktemp("models")
    tiny_llama(0).save_pretrained(top / "target")
    tiny_llama(1, layers=1).save_pretrained(top / "draft")
    lines = [json.dumps({"prompt_token_ids": prompt}) for prompt in random_prompts(3)]
    (top / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return top


@pytest.fixture(scope="session")
def chat_pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words that name a tiny target and draft that know chats, and where no corpus is."""
    top = tmp_path_factory.mktemp("chat-pair")
    tokenizer = byte_tokenizer()
    for seed, (name, layers) in enumerate((("target", 2), ("draft", 1)), start=1):
        tiny_llama(seed, layers=layers, vocab=len(tokenizer)).save_pretrained(top / name)
        tokenizer.save_pretrained(top / name)
    words = [str(top / "target"), "--draft", str(top / "draft"), "--threads", "1"]
    return [*words, "--data-dir", str(top)]


@pytest.fixture
def sweep(models: Path) -> list[str]:
    """Words behind a command that measure the tiny target quickly."""
    return [str(models / "target"), "--prompts", str(models / "prompts.jsonl"), *FLAGS]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of environments whose every Python is the fake peer."""
    calls: list[list[str]] = []

    def call(words: list[str], _: dict[str, str]) -> None:
        calls.append(words)
        if "venv" in words:
            place = Path(words[-1])
            (place / "lib/python3/site-packages").mkdir(parents=True)
            (place / "bin").mkdir()
            (place / "bin/python").write_text(
                f'#!/bin/sh\nexec "{sys.executable}" "{_FAKE_PEER}"\n'
            )
            (place / "bin/python").chmod(0o755)

    monkeypatch.setattr(environment, "_call", call)
    for name in ENVIRONMENTS:
        install(name, tmp_path, ["--quiet"])
    (tmp_path / "calls").write_text("\n".join(" ".join(words) for words in calls))
    return tmp_path
