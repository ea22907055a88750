"""Built-in prompts work for models with and without a chat template; loads fit their lanes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.copy_texts import COPY_REQUESTS
from benchmarks.sweep import Sweep, check_fit
from benchmarks.workloads import BUILT_IN, Workload, built_in_workload
from engine.errors import ContextLengthExceededError
from engine.prompts import PromptTokenizer
from tests.byte_tokenizer import byte_tokenizer


def test_copy_asks_for_a_text_that_the_prompt_holds(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    workload = built_in_workload("copy", PromptTokenizer("bytes", tokenizer), tmp_path)
    assert workload.source == f"{len(COPY_REQUESTS)} built-in requests to edit a text"
    texts = [tokenizer.decode(prompt) for prompt in workload.prompts]
    assert texts == [f"<user>{request}<assistant>" for request in COPY_REQUESTS]
    assert all(len(request.split("\n\n", 1)[1]) > 200 for request in COPY_REQUESTS)


def test_chat_falls_back_on_built_in_openings_where_the_corpus_is_absent(tmp_path: Path) -> None:
    workload = built_in_workload("chat", PromptTokenizer("bytes", byte_tokenizer()), tmp_path)
    assert len(workload.prompts) == len(BUILT_IN)


def test_models_without_a_chat_template_get_the_text_alone(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(chat_template=None)
    workload = built_in_workload("chat", PromptTokenizer("bytes", tokenizer), tmp_path)
    assert [tokenizer.decode(prompt) for prompt in workload.prompts] == list(BUILT_IN)


def test_tokens_follow_the_load_unless_they_are_given() -> None:
    sweep = Sweep(max_tokens=64)
    assert [sweep.tokens_at(load) for load in (1, 4, 32)] == [512, 512, 4096]
    assert [sweep.warm_up_tokens_at(load) for load in (1, 32)] == [128, 2048]
    assert Sweep(num_tokens=100).tokens_at(32) == 100


def test_prompts_that_leave_no_room_are_refused_before_the_sweep() -> None:
    sweep, workload = Sweep(max_tokens=10), Workload("long", "one prompt", [[1], [1] * 50])
    check_fit(sweep, [workload], 65)
    with pytest.raises(ContextLengthExceededError, match=r"50 tokens .* 15 exceed .* 64"):
        check_fit(sweep, [workload], 64)
