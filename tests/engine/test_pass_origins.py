"""What requests are told of their tokens' origins, whoever drafts; others are told nothing."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from engine.client.messages import NewRequest, StepOutputs, encoder, from_engine_decoder
from engine.core import EngineCore
from engine.door import make_requests
from engine.metrics import EngineStats
from engine.model.loader import from_model
from engine.pass_origins import PassOrigins
from engine.provenance import PassProvenance
from engine.request import GRAMMAR, Request, RequestDelta
from engine.runner.loop_setup import make_decode_loop
from engine.sampling.grammar_masks import GrammarMasks
from engine.sampling_params import SamplingParams
from engine.speculative.pass_prices import PassPrices
from engine.step import ModelOutput, RequestOutcome, ScheduledRequest, SchedulerOutput
from engine.structured_output import StructuredOutput
from tests.byte_tokenizer import byte_tokenizer
from tests.engine.drafters import DRAFTERS, Target, costs_that_invite, drafted_core
from tests.engine.late_device import LateQueue, RecordedGraphs
from tests.tiny_models import drain, generate, greedy, make_core, seeded, tiny_llama, tokens_of

BYTES = byte_tokenizer()
PROMPT = list(BYTES.encode("he said: no, no, no, no", add_special_tokens=False))
FORCED = "The dog likes "
SHAPE = StructuredOutput(kind="regex", text=f"({FORCED})[a-z]{{3,6}}\\.")


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(from_model(tiny_llama(layers=3, vocab=258)), BYTES)


@pytest.fixture
def _drafts_look_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `auto` draft; see `test_every_drafter`."""
    monkeypatch.setattr("engine.speculation.load_or_measure", costs_that_invite)
    monkeypatch.setattr(PassPrices, "observe", lambda *_: None)


def ask(core: EngineCore, params: SamplingParams, *, wants: bool = True) -> list[RequestDelta]:
    (request,) = make_requests(
        PROMPT, params, request_id="r", info=core.info, wants_provenance=wants
    )
    core.add_request(request)
    return drain(core)["r-0"]


def check(deltas: list[RequestDelta]) -> None:
    """Hold what is told of the passes to the counts and tokens of the deltas."""
    for delta in deltas:
        told = delta.provenance
        if not delta.new_token_ids:
            assert told is None
            continue
        assert told is not None
        assert told.seconds >= 0.0
        assert len(told.draft_token_ids) == delta.num_draft_tokens
        num_accepted = delta.num_accepted_tokens
        assert told.draft_token_ids[:num_accepted] == delta.new_token_ids[:num_accepted]
        if num_accepted < min(delta.num_draft_tokens, len(delta.new_token_ids)):
            assert told.draft_token_ids[num_accepted] != delta.new_token_ids[num_accepted]
        if told.survival is not None:
            assert len(told.survival) == delta.num_draft_tokens
            assert all(0.0 <= chance <= 1.0 for chance in told.survival)
            assert sorted(told.survival, reverse=True) == told.survival


@pytest.mark.usefixtures("_drafts_look_cheap")
@pytest.mark.parametrize("speculation", [4, "auto"])
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_drafts_of_every_drafter_are_told(
    drafter: str, speculation: int | str, target: Target
) -> None:
    params = [greedy(24), seeded(24), seeded(24, allowed_token_ids=(64, 65))]
    if drafter == "grammar":
        params = [SamplingParams(temperature=0.0, max_tokens=30, structured_output=SHAPE)]
    if drafter == "prediction":
        words = generate(drafted_core(target, None, "off"), [PROMPT] * 3, params)
        pairs = zip(params, words, strict=True)
        params = [replace(own, predicted_token_ids=tuple(ids)) for own, ids in pairs]
    plain = drafted_core(target, drafter, speculation)
    core = drafted_core(target, drafter, speculation)
    num_drafts = 0
    for own in params:
        deltas = ask(core, own)
        check(deltas)
        assert tokens_of(deltas) == tokens_of(ask(plain, own, wants=False))
        for delta in deltas:
            num_drafts += delta.num_draft_tokens
            is_weighed = delta.num_draft_tokens > 0 and speculation == "auto"
            assert delta.provenance is None or (
                (delta.provenance.survival is not None) == is_weighed
            )
    assert num_drafts > 0


def test_nothing_is_told_to_those_who_did_not_ask(target: Target) -> None:
    deltas = ask(drafted_core(target, "itself", 3), greedy(12), wants=False)
    assert all(delta.provenance is None for delta in deltas)


def test_every_token_of_plain_decoding_is_the_targets(target: Target) -> None:
    deltas = ask(drafted_core(target, None, "off"), greedy(12))
    check(deltas)
    assert {tuple(d.provenance.draft_token_ids) for d in deltas if d.provenance} == {()}


@pytest.mark.parametrize("drafter", ["grammar", "itself", None])
def test_places_without_a_choice_are_told_whoever_drafts(
    drafter: str | None, target: Target
) -> None:
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=30, structured_output=SHAPE)
    deltas = ask(drafted_core(target, drafter, 3 if drafter else "off"), params)
    check(deltas)
    forced = [
        place in delta.provenance.forced
        for delta in deltas
        if delta.provenance is not None
        for place in range(len(delta.new_token_ids))
    ]
    assert all(forced[: len(FORCED)])
    assert not any(forced[len(FORCED) : len(FORCED) + 3])
    if drafter == "grammar":
        assert GRAMMAR in {delta.drafter for delta in deltas}


@pytest.mark.usefixtures("own_cache", "_drafts_look_cheap")
@pytest.mark.parametrize(
    ("models", "options"),
    [
        ([tiny_llama(1)], {"speculation": 2}),
        ([tiny_llama(1, layers=1)], {"speculation": "auto"}),
        ([], {"drafters": "ngram", "speculation": 3}),
    ],
)
def test_steps_ahead_tell_their_drafts(
    models: list[Any], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    late = partial(make_decode_loop, queue=LateQueue(1), graphs=RecordedGraphs())
    monkeypatch.setattr("engine.core.make_decode_loop", late)
    core = make_core(tiny_llama(), *models, decode_ahead="on", **options)
    plain = make_core(tiny_llama())
    prompt = [token_id % 100 + 3 for token_id in PROMPT]
    asked = {"a": greedy(30), "b": seeded(30, allowed_token_ids=(64, 65))}
    for name, params in asked.items():
        for request in make_requests(
            prompt, params, request_id=name, info=core.info, wants_provenance=True
        ):
            core.add_request(request)
    deltas = drain(core)
    for name, params in asked.items():
        check(deltas[f"{name}-0"])
        assert [tokens_of(deltas[f"{name}-0"])] == generate(plain, [prompt], params)
    assert any(d.num_draft_tokens for d in itertools.chain.from_iterable(deltas.values()))


def test_time_is_counted_from_the_queue_and_then_from_pass_to_pass() -> None:
    moments = iter([12.0, 12.5])
    origins = PassOrigins(lambda *_: None, GrammarMasks(), clock=lambda: next(moments))
    request = Request("r", [1, 2], greedy(4), wants_provenance=True, scheduled_time=11.0)
    origins.watch(request)
    share = ScheduledRequest(request, 2, 0, 0, [1])
    told = []
    for _ in range(2):
        outcome = RequestOutcome([7])
        origins.note(SchedulerOutput([share]), ModelOutput([outcome]))
        assert outcome.provenance is not None
        told.append(outcome.provenance.seconds)
    assert told == [1.0, 0.5]


def test_wish_and_answer_cross_the_process_border() -> None:
    request = Request("r", [1], greedy(4), wants_provenance=True)
    assert NewRequest.of(request).make().wants_provenance
    told = PassProvenance(0.25, [5, 6], [0.5, 0.25], (1,))
    sent = StepOutputs([RequestDelta("r", [5], provenance=told)], EngineStats())
    received = from_engine_decoder.decode(encoder.encode(sent))
    assert isinstance(received, StepOutputs)
    assert received.deltas[0].provenance == told
