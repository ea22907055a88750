"""The decode loop says what synchronous steps say, whatever happens while steps are under way."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from engine.config import EngineConfig
from engine.config_files import apply_options
from engine.core import EngineCore
from engine.errors import ConfigError
from engine.model.loader import from_model
from engine.model_pair import ModelPair
from engine.request import FinishReason, RequestDelta
from engine.runner.loop_setup import make_decode_loop
from engine.sampling_params import SamplingParams
from tests.engine.late_device import LateQueue, RecordedGraphs
from tests.tiny_models import (
    add,
    drain,
    generate,
    greedy,
    make_core,
    random_prompts,
    seeded,
    tiny_llama,
    tokens_of,
)

PROMPTS = random_prompts(7)
MIXED = [
    greedy(18),
    seeded(25),
    seeded(9, temperature=0.6, top_k=7),
    seeded(30, repetition_penalty=1.3, frequency_penalty=0.2, presence_penalty=0.1, top_p=0.9),
    greedy(22, logit_bias={7: 4.0, 9: -5.0}, bad_words_token_ids=((11,),)),
    seeded(12, min_p=0.05, seed=2**64 - 1),
    SamplingParams(temperature=1.0, seed=5, max_tokens=40, stop_token_ids=tuple(range(60, 90))),
]

MakeCore = Callable[..., EngineCore]


@pytest.fixture
def late_core(monkeypatch: pytest.MonkeyPatch) -> MakeCore:
    """Make cores whose device is late, and whose graphs repeat what was recorded."""

    def make(*models: Any, seed: int = 0, **options: Any) -> EngineCore:
        late = partial(make_decode_loop, queue=LateQueue(seed), graphs=RecordedGraphs())
        monkeypatch.setattr("engine.core.make_decode_loop", late)
        return make_core(*models, decode_ahead="on", **options)

    return make


def cousin() -> PreTrainedModel:
    """Make a draft that often agrees with `tiny_llama()`."""
    model = tiny_llama()
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.03 * torch.randn_like(weight))
    return model


def drafters() -> dict[str, tuple[list[Any], dict[str, Any]]]:
    """Who drafts: the models, and the settings."""
    return {
        "nobody": ([], {}),
        "its twin": ([tiny_llama()], {"speculation": 3}),
        "another model": ([tiny_llama(1)], {"speculation": 2}),
        "a cousin": ([cousin()], {"speculation": 4}),
        "a chosen number": ([tiny_llama(1, layers=1)], {"speculation": "auto"}),
        "ngram": ([], {"drafters": "ngram", "speculation": 3}),
        "ngram and a model": ([tiny_llama()], {"drafters": "in memory,ngram", "speculation": 3}),
    }


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("name", drafters())
def test_words_are_those_of_synchronous_steps(name: str, late_core: MakeCore) -> None:
    models, options = drafters()[name]
    expected = generate(make_core(tiny_llama()), PROMPTS, MIXED)
    core = late_core(tiny_llama(), *models, **options)
    assert generate(core, PROMPTS, MIXED) == expected


def test_steps_are_launched_before_the_ones_in_front_of_them_are_read(
    late_core: MakeCore,
) -> None:
    core = late_core(tiny_llama(), tiny_llama(), speculation=3)
    add(core, PROMPTS[0], greedy(40), "a")
    core.step()
    was_ahead = []
    while core.has_unfinished:
        core.step()
        was_ahead.append(core._under_way is not None)
    # All but the end, where the answer may be complete.
    assert all(was_ahead[:-2])
    graphs = core._loop.graphs  # type: ignore[union-attr]
    assert graphs.num_replays > graphs.num_graphs > 0
    assert core.stats().num_graphs == graphs.num_graphs


@pytest.mark.parametrize("budget", [16, 512])
def test_prompts_join_while_others_are_under_way(budget: int, late_core: MakeCore) -> None:
    prompts = random_prompts(4, low=30, high=60)
    expected = generate(make_core(tiny_llama()), prompts, greedy(40))
    core = late_core(tiny_llama(), cousin(), speculation=2, max_num_batched_tokens=budget)
    add(core, prompts[0], greedy(40), "r0")
    deltas = {f"r{index}-0": [] for index in range(4)}
    was_ahead = []
    for number in range(60):
        if number in (8, 10, 12):
            add(core, prompts[number // 2 - 3], greedy(40), f"r{number // 2 - 3}")
        for delta in core.step():
            deltas[delta.request_id] += delta.new_token_ids
        was_ahead.append(core._under_way is not None)
        if not core.has_unfinished:
            break
    # While the prompts come and are computed, nobody waits for the device. Drafts that prompts
    # left no room for are caught up with tokens that have to be known.
    assert all(was_ahead[8 : 17 if budget == 16 else 20])
    assert list(deltas.values()) == expected


def test_drafts_are_accepted_as_without_the_loop(late_core: MakeCore) -> None:
    pair = tiny_llama(), cousin()
    plain, late = make_core(*pair, speculation=3), late_core(*pair, speculation=3)
    for core in (plain, late):
        generate(core, PROMPTS, seeded(80))
    mine, theirs = late.stats().speculation, plain.stats().speculation
    assert 0.2 < theirs.acceptance_rate < 0.95
    # Where an answer may end before the next step, fewer are drafted ahead.
    assert mine.num_target_passes < 1.1 * theirs.num_target_passes


def test_dice_accept_what_they_accept_in_synchronous_steps(late_core: MakeCore) -> None:
    options = {"speculation": 4, "synthetic_acceptance": "0.8,0.5"}
    pair = tiny_llama(), cousin()
    plain, late = make_core(*pair, **options), late_core(*pair, **options)
    params = seeded(40, seed=2**64 - 5)
    assert generate(late, PROMPTS, params) == generate(plain, PROMPTS, params)
    assert late.stats().speculation.num_accepted_tokens > 0
    for core in (plain, late):
        core.change_synthetic_acceptance([1.0])
    assert generate(late, PROMPTS[:3], params) == generate(plain, PROMPTS[:3], params)


@pytest.mark.parametrize("kept", [(0,), (0, 1, 2)])
def test_layers_of_the_target_draft_over_its_own_keys(
    kept: tuple[int, ...], late_core: MakeCore
) -> None:
    expected = generate(make_core(tiny_llama(layers=3)), PROMPTS, MIXED)
    options = {"kv_cache_memory": "64MiB", "draft": "layer-skip", "speculation": 3}
    late_core(tiny_llama())  # whose device the next one has
    config = apply_options(EngineConfig(), options | {"decode_ahead": "on"})
    core = EngineCore(config, ModelPair(from_model(tiny_llama(layers=3)), kept_layers=kept))
    assert generate(core, PROMPTS, MIXED) == expected
    # All layers agree with themselves.
    assert (core.stats().speculation.acceptance_rate > 0.9) == (len(kept) == 3)


def test_passes_that_were_recorded_ahead_change_no_words(late_core: MakeCore) -> None:
    expected = generate(make_core(tiny_llama()), PROMPTS, seeded(20))
    core = late_core(tiny_llama(), cousin(), speculation=2, max_num_seqs=4)
    assert core._loop is not None
    core._loop.record(2)
    num_recorded = core.stats().num_graphs
    assert num_recorded > 0
    assert generate(core, PROMPTS, seeded(20)) == expected


@pytest.mark.parametrize("graphs", ["lazy", "full"])
@pytest.mark.parametrize("decode_ahead", ["auto", "off", "on"])
def test_graphs_that_cannot_be_had_are_refused_by_name(graphs: str, decode_ahead: str) -> None:
    with pytest.raises(ConfigError, match=f"graphs: {graphs} needs"):
        make_core(tiny_llama(), graphs=graphs, decode_ahead=decode_ahead)


def test_what_is_under_way_when_a_request_ends_is_dropped(late_core: MakeCore) -> None:
    core = late_core(tiny_llama(), tiny_llama(), speculation=3)
    free = core.kv.num_free_blocks
    add(core, PROMPTS[0], greedy(60), "a")
    for _ in range(4):
        core.step()
    assert core._under_way is not None
    core.abort(["a-0"])
    assert not core.has_unfinished or core.step()[0].finish_reason is FinishReason.ABORT
    assert core.kv.num_free_blocks == free
    assert not core._ledger._untold
    expected = generate(make_core(tiny_llama()), PROMPTS[:2], greedy(20))
    assert generate(core, PROMPTS[:2], greedy(20)) == expected
    core.kv.check_invariants()


def test_requests_that_need_the_host_decode_beside_the_others(late_core: MakeCore) -> None:
    settings = [greedy(20), greedy(12, logprobs=2), seeded(30, min_tokens=8)]
    expected = generate(make_core(tiny_llama()), PROMPTS[:3], settings)
    core = late_core(tiny_llama(), tiny_llama(1), speculation=2)
    assert generate(core, PROMPTS[:3], settings) == expected


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("seed", range(12))
def test_random_schedules_change_no_words(seed: int, late_core: MakeCore) -> None:
    """Arrivals, aborts, preemptions and full pools, while steps are under way."""
    rng = random.Random(seed)
    name = rng.choice(list(drafters()))
    models, options = drafters()[name]
    core = late_core(
        tiny_llama(),
        *models,
        seed=seed,
        max_model_len=80,
        num_blocks=rng.choice([24, 40, 200]),
        max_num_seqs=rng.choice([2, 4, 16]),
        max_num_batched_tokens=rng.choice([16, 64, 512]),
        **options,
    )
    prompts = random_prompts(14, seed=seed)
    settings = [rng.choice(MIXED) for _ in prompts]
    oracle = make_core(tiny_llama())
    expected = generate(oracle, prompts, settings)
    deltas, aborted = _run_at_random(core, prompts, settings, rng)
    for index, answer in enumerate(expected):
        written = tokens_of(deltas[f"r{index}-0"])
        if index in aborted:
            assert written == answer[: len(written)]
        else:
            assert written == answer
    assert core.kv.usage == 0.0
    assert not core._ledger._untold


def _run_at_random(
    core: EngineCore,
    prompts: Sequence[Sequence[int]],
    settings: Sequence[SamplingParams],
    rng: random.Random,
) -> tuple[dict[str, list[RequestDelta]], set[int]]:
    waiting = list(range(len(prompts)))
    deltas: dict[str, list[RequestDelta]] = {f"r{index}-0": [] for index in waiting}
    aborted: set[int] = set()
    while waiting or core.has_unfinished:
        while waiting and rng.random() < 0.3:
            index = waiting.pop(0)
            priority = rng.choice([0, 0, 1])
            add(core, prompts[index], settings[index], f"r{index}", priority)
        if rng.random() < 0.04:
            index = rng.randrange(len(prompts))
            if f"r{index}-0" in core.scheduler.requests:
                aborted.add(index)
                core.abort([f"r{index}-0"])
        for delta in core.step():
            deltas[delta.request_id].append(delta)
        core.kv.check_invariants()
    for name, rest in drain(core).items():
        deltas[name] += rest
    return deltas, aborted
