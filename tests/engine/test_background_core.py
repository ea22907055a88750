"""A background answer is the same words, however often it pauses or loses its blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from engine.core import EngineCore
from engine.door import make_requests
from engine.runner.loop_setup import make_decode_loop
from engine.sampling_params import SamplingParams
from tests.engine.late_device import LateQueue, RecordedGraphs
from tests.tiny_models import generate, greedy, make_core, random_prompts, seeded, tiny_llama

PROMPTS = random_prompts(6)
PARAMS = [greedy(30), seeded(28), seeded(30, temperature=0.7, top_k=9)] * 2
LAST_CHAT = 40

MakeCore = Callable[..., EngineCore]


@pytest.fixture(params=["synchronous", "late"])
def core_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> MakeCore:
    """Make cores that wait for each step, and such that run ahead of a late device."""

    def make(*models: Any, **options: Any) -> EngineCore:
        if request.param == "late":
            late = partial(make_decode_loop, queue=LateQueue(0), graphs=RecordedGraphs())
            monkeypatch.setattr("engine.core.make_decode_loop", late)
            options["decode_ahead"] = "on"
        return make_core(*models, **options)

    return make


def ask(core: EngineCore, number: int, params: SamplingParams, *, is_background: bool) -> None:
    name = f"{'batch' if is_background else 'chat'}-{number}"
    requests = make_requests(
        PROMPTS[number % len(PROMPTS)],
        params,
        request_id=name,
        info=core.info,
        is_background=is_background,
    )
    for request in requests:
        core.add_request(request)


def run_shared(core: EngineCore) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Run background answers beside chats that come one by one; gives words and the most paused."""
    words: dict[str, list[int]] = {}
    most = {"paused": 0, "running": 0}
    for number, params in enumerate(PARAMS):
        ask(core, number, params, is_background=True)
    num_steps = 0
    while core.has_unfinished:
        if num_steps % 5 == 4 and num_steps < LAST_CHAT:
            ask(core, num_steps, PARAMS[num_steps % len(PARAMS)], is_background=False)
        for delta in core.step():
            words.setdefault(delta.request_id, []).extend(delta.new_token_ids)
            assert delta.error is None
        stats = core.stats()
        most["paused"] = max(most["paused"], stats.num_background_paused)
        most["running"] = max(most["running"], stats.num_background_running)
        core.kv.check_invariants()
        num_steps += 1
    return words, most


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(
    ("drafts", "options"),
    [
        pytest.param(False, {"speculation": 0}, id="plain"),
        pytest.param(True, {"speculation": 3}, id="draft model"),
        pytest.param(True, {"speculation": "auto"}, id="a chosen number"),
        pytest.param(False, {"drafters": "ngram", "speculation": 3}, id="ngram"),
    ],
)
def test_words_are_those_of_answers_left_alone(
    core_of: MakeCore, drafts: bool, options: dict[str, Any]
) -> None:
    expected = generate(make_core(tiny_llama()), PROMPTS, PARAMS)
    models = [tiny_llama(), tiny_llama(1)] if drafts else [tiny_llama()]
    core = core_of(*models, max_num_seqs=3, **options)
    words, most = run_shared(core)
    assert [words[f"batch-{number}-0"] for number in range(len(PROMPTS))] == expected
    assert most["paused"] > 0
    assert most["running"] > 0
    stats = core.stats()
    assert stats.num_background_running == stats.num_background_paused == 0
    assert stats.num_background_waiting == stats.num_waiting == 0


@pytest.mark.usefixtures("own_cache")
def test_words_stay_the_same_where_blocks_are_taken_away(core_of: MakeCore) -> None:
    expected = generate(make_core(tiny_llama()), PROMPTS, PARAMS)
    core = core_of(tiny_llama(), speculation=0, num_blocks=30, max_model_len=96)
    words, _ = run_shared(core)
    assert [words[f"batch-{number}-0"] for number in range(len(PROMPTS))] == expected
    assert core.stats().num_preemptions > 0
