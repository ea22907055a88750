"""Constrained requests in the engine's loop: the same words under every draft, and nobody waits."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from threading import Event
from typing import Any

import pytest
from transformers import PreTrainedModel

from engine.core import EngineCore
from engine.errors import InvalidRequestError
from engine.model.loader import LoadedModel, from_model
from engine.request import FinishReason, RequestDelta
from engine.sampling import grammar_library
from engine.sampling.grammar_compiler import CompiledGrammar, GrammarCompiler
from engine.sampling.grammar_masks import GrammarMasks
from engine.sampling_params import SamplingParams
from engine.structured_output import REFUSED, FreeText, StructuredOutput
from tests.byte_tokenizer import byte_tokenizer
from tests.engine.grammars import BYTE_EOS, BYTE_VOCAB, by_definition, byte_vocabulary, shape
from tests.tiny_models import add, drain, generate, greedy, make_core, tiny_llama, tokens_of

BYTES = byte_vocabulary()
PROMPTS = [BYTES.tokenize(text.encode()) for text in ("name:", "A list of", "42 and", "yes or no?")]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
        "count": {"type": "integer", "minimum": 0, "maximum": 999},
    },
    "required": ["name", "tags", "count"],
    "additionalProperties": False,
}
SHAPES = [
    shape("json_schema", json.dumps(SCHEMA)),
    shape("regex", "[0-9]{3}-[a-z]+(, [0-9]{3}-[a-z]+){1,2}\\."),
    shape("lark", 'start: "(" start ")" | word\nword: /[a-z]{1,4}/'),
    shape("json_schema", json.dumps(SCHEMA), FreeText(until="e", opening=None)),
    shape("choice", '["yes", "no", "perhaps"]', FreeText(until=">", opening="<")),
]


def model(seed: int = 0, *, has_end: bool = True) -> LoadedModel:
    """A random model over bytes; one without an end token on demand."""
    llama: PreTrainedModel = tiny_llama(seed, vocab=BYTE_VOCAB)
    ends = BYTE_EOS if has_end else None
    llama.config.eos_token_id = ends
    if llama.generation_config is not None:
        llama.generation_config.eos_token_id = ends
    return from_model(llama)


def core(draft: LoadedModel | None = None, *, has_end: bool = True, **options: Any) -> EngineCore:
    target = model(has_end=has_end)
    return make_core(target, draft, tokenizer=byte_tokenizer(), **options)


def sampled(structured: StructuredOutput, temperature: float = 1.0, **more: Any) -> SamplingParams:
    values = {"max_tokens": 60, "seed": 5} | more
    return SamplingParams(temperature=temperature, structured_output=structured, **values)


def run(engine: EngineCore, params: Sequence[SamplingParams]) -> dict[str, list[RequestDelta]]:
    for index, own in enumerate(params):
        add(engine, PROMPTS[index % len(PROMPTS)], own, f"r{index}")
    return {name.removesuffix("-0"): deltas for name, deltas in drain(engine).items()}


def text_of(deltas: Sequence[RequestDelta]) -> str:
    tokens = [token for token in tokens_of(deltas) if token != BYTE_EOS]
    return BYTES.ll.decode_bytes(tokens).decode(errors="replace")


PARAMS = [sampled(own, t) for own in SHAPES for t in (0.0, 1.0)] + [
    sampled(SHAPES[0], repetition_penalty=1.2, top_p=0.9, logprobs=2),
    sampled(SHAPES[1], top_k=5, bad_words_token_ids=(tuple(BYTES.tokenize(b"a")),)),
    SamplingParams(temperature=1.0, seed=3, max_tokens=20),
]


@pytest.fixture(scope="module")
def plain() -> dict[str, list[int]]:
    """What is written without speculation, one request at a time."""
    deltas = run(core(max_num_seqs=1), PARAMS)
    return {name: tokens_of(own) for name, own in deltas.items()}


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("draft_seed", [0, 1], ids=["good_draft", "random_draft"])
def test_drafts_never_change_constrained_words(
    k: int, draft_seed: int, plain: dict[str, list[int]]
) -> None:
    engine = core(model(draft_seed), speculation=k)
    deltas = run(engine, PARAMS)
    assert {name: tokens_of(own) for name, own in deltas.items()} == plain
    assert engine.kv.usage == 0.0
    assert engine.stats().speculation.num_accepted_tokens > 0


def test_a_draft_with_the_targets_weights_sees_the_targets_masks() -> None:
    engine = core(model(0), speculation=4)
    run(engine, PARAMS[:4])
    assert engine.stats().speculation.acceptance_rate == 1.0


def test_preempted_requests_go_on_where_their_grammar_stood(plain: dict[str, list[int]]) -> None:
    engine = core(model(1), num_blocks=40, max_model_len=72, speculation=2)
    deltas = run(engine, PARAMS)
    assert {name: tokens_of(own) for name, own in deltas.items()} == plain
    assert engine.scheduler.num_preemptions > 0, "the pool was meant to be too small"


def test_finished_answers_have_their_shape(plain: dict[str, list[int]]) -> None:
    finished = [tokens for tokens in plain.values() if tokens[-1] == BYTE_EOS]
    assert len(finished) >= 5
    texts = {
        name: BYTES.ll.decode_bytes([t for t in tokens if t != BYTE_EOS]).decode()
        for name, tokens in plain.items()
        if tokens[-1] == BYTE_EOS
    }
    for name in ("r2", "r3"):
        if name in texts:
            parts = texts[name].removesuffix(".").split(", ")
            assert all(part[:3].isdigit() and part[4:].islower() for part in parts)


def test_choices_are_written_as_they_are_listed() -> None:
    wanted = ["yes", "no", "perhaps", "\N{GRINNING FACE}"]
    engine = core(model(1))
    params = [sampled(shape("choice", json.dumps(wanted)), seed=seed) for seed in range(8)]
    deltas = run(engine, params)
    assert {text_of(own) for own in deltas.values()} <= set(wanted)
    assert all(own[-1].finish_reason is FinishReason.STOP for own in deltas.values())


def test_without_an_end_token_an_answer_ends_where_its_grammar_ends() -> None:
    params = [sampled(shape("regex", "[0-9]{2,5}x"), seed=seed) for seed in range(4)]
    endings = []
    for draft in (None, model(0, has_end=False), model(1, has_end=False)):
        engine = core(draft, has_end=False)
        deltas = run(engine, params)
        assert all(own[-1].finish_reason is FinishReason.STOP for own in deltas.values())
        endings.append({name: text_of(own) for name, own in deltas.items()})
    assert endings[0] == endings[1] == endings[2]
    assert all(text.endswith("x") and text[:-1].isdigit() for text in endings[0].values())


def test_forced_tokens_cost_no_pass() -> None:
    key = "a_rather_long_property_name"
    schema = {
        "x-guidance": {"whitespace_flexible": False},
        "type": "object",
        "properties": {key: {"type": "boolean"}},
        "required": [key],
        "additionalProperties": False,
    }
    engine = core(speculation=4, drafters="ngram")
    params = sampled(shape("json_schema", json.dumps(schema)))
    deltas = run(engine, [params])["r0"]
    assert json.loads(text_of(deltas)).keys() == {key}
    stats = engine.stats().speculation
    assert stats.num_target_passes < stats.num_output_tokens / 3


KEYS = {
    "x-guidance": {"whitespace_flexible": False},
    "type": "object",
    "properties": {"ab": {"type": "boolean"}, "abcdefgh": {"enum": [1, 2]}},
    "required": ["ab", "abcdefgh"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("draft_seed", [0, 1], ids=["good_draft", "random_draft"])
def test_a_draft_goes_on_behind_forced_tokens(
    draft_seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = [sampled(shape("json_schema", json.dumps(KEYS))), *PARAMS[:4]]
    written = [run(core(), params)]
    num_passes = []
    for is_told in (False, True):
        if not is_told:
            monkeypatch.setattr(GrammarMasks, "forced_tokens", lambda *_: [])
        engine = core(model(draft_seed), speculation=4)
        passes: list[int] = []
        count_drafts(engine, passes, monkeypatch)
        written.append(run(engine, params))
        num_passes.append(len(passes))
        monkeypatch.undo()
    plain, untold, told = ({n: tokens_of(d) for n, d in run_.items()} for run_ in written)
    assert plain == untold == told
    assert num_passes[1] < num_passes[0]


def count_drafts(engine: EngineCore, passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Note every drafted row."""
    sample = engine._sampler.sample

    def note(*args: Any, with_logprobs: bool = True, **options: Any) -> Any:
        if not with_logprobs:
            passes.extend(args[2].request_index)
        return sample(*args, with_logprobs=with_logprobs, **options)

    monkeypatch.setattr(engine._sampler, "sample", note)


class _SlowCompiler:
    """Holds up every compilation until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = Event()
        compile_now = GrammarCompiler._compile

        def compile_later(compiler: GrammarCompiler, wanted: StructuredOutput) -> CompiledGrammar:
            assert self.go.wait(20)
            return compile_now(compiler, wanted)

        monkeypatch.setattr(GrammarCompiler, "_compile", compile_later)


def test_others_go_on_while_a_grammar_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, engine = _SlowCompiler(monkeypatch), core()
    add(engine, PROMPTS[0], sampled(SHAPES[1]), "held")
    add(engine, PROMPTS[1], greedy(5), "other")
    written = []
    while "other-0" not in {delta.request_id for delta in written if delta.finish_reason}:
        written += engine.step()
    assert {delta.request_id for delta in written} == {"other-0"}
    assert engine.has_unfinished
    assert engine.stats().num_waiting == 1
    slow.go.set()
    assert tokens_of(drain(engine)["held-0"])


def test_waiting_for_a_grammar_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, engine = _SlowCompiler(monkeypatch), core()
    add(engine, PROMPTS[0], sampled(SHAPES[1]), "held")
    started, num_steps = time.monotonic(), 0
    while time.monotonic() - started < 0.1:
        assert engine.step() == []
        num_steps += 1
    assert num_steps <= 12
    slow.go.set()
    drain(engine)


def test_a_request_can_be_aborted_while_its_grammar_compiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow, engine = _SlowCompiler(monkeypatch), core()
    add(engine, PROMPTS[0], sampled(SHAPES[1]), "held")
    engine.abort(["held-0"])
    slow.go.set()
    (delta,) = drain(engine)["held-0"]
    assert delta.finish_reason is FinishReason.ABORT
    assert not engine.has_unfinished


def test_an_id_is_in_use_while_its_grammar_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, engine = _SlowCompiler(monkeypatch), core()
    add(engine, PROMPTS[0], sampled(SHAPES[1]), "held")
    for params in (greedy(5), sampled(SHAPES[1])):
        with pytest.raises(InvalidRequestError, match="in use"):
            add(engine, PROMPTS[0], params, "held")
    slow.go.set()
    drain(engine)


def test_requests_are_served_in_the_order_in_which_they_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow, engine = _SlowCompiler(monkeypatch), core(max_num_seqs=1)
    add(engine, PROMPTS[0], sampled(SHAPES[1]), "first")
    add(engine, PROMPTS[1], greedy(40), "running")
    engine.step()
    add(engine, PROMPTS[1], greedy(5), "last")
    slow.go.set()
    time.sleep(0.3)
    ended = []
    while engine.has_unfinished:
        ended += [delta.request_id for delta in engine.step() if delta.finish_reason]
    assert ended == ["running-0", "first-0", "last-0"]


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (shape("lark", "start: nowhere"), "nowhere"),
        (shape("json_schema", '{"uniqueItems": true}'), "uniqueItems"),
    ],
)
def test_a_grammar_that_does_not_compile_ends_its_request(
    wanted: StructuredOutput, reason: str
) -> None:
    deltas = run(core(), [sampled(wanted), greedy(5)])
    assert deltas["r0"][-1].finish_reason is FinishReason.ERROR
    assert reason in (deltas["r0"][-1].error or "")
    assert len(tokens_of(deltas["r1"])) == 5


def test_a_model_without_a_tokenizer_refuses_grammars_only() -> None:
    engine = make_core(model())
    deltas = run(engine, [sampled(SHAPES[1]), greedy(5)])
    assert "no tokenizer" in (deltas["r0"][-1].error or "")
    assert len(tokens_of(deltas["r1"])) == 5


@pytest.mark.parametrize("draft_seed", [None, 0], ids=["plain", "good_draft"])
def test_a_grammar_that_meets_a_limit_ends_its_request_alone(
    draft_seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_library, "MAX_LEXER_STATES", 40)
    engine = core(None if draft_seed is None else model(draft_seed))
    limited = sampled(shape("regex", "(a|b){20,}a(a|b){12}c"), seed=3)
    deltas = run(engine, [limited, greedy(30)])
    assert deltas["r0"][-1].finish_reason is FinishReason.ERROR
    assert "too many states" in (deltas["r0"][-1].error or "")
    assert 5 < len(tokens_of(deltas["r0"])) < 60
    assert len(tokens_of(deltas["r1"])) == 30


def test_where_a_grammar_meets_its_limit_does_not_depend_on_drafts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grammar_library, "MAX_LEXER_STATES", 40)
    limited = sampled(shape("regex", "(a|b){20,}a(a|b){12}c"), seed=3)
    written = []
    for draft in (None, model(0), model(1)):
        written.append(tokens_of(run(core(draft), [limited])["r0"]))
    assert written[0] == written[1] == written[2]


def test_a_grammar_with_a_dead_end_says_so() -> None:
    dead = shape("lark", 'start: "x" A\nA: /[a-z]+/ & /[0-9]+/')
    deltas = run(core(), [sampled(dead)])["r0"]
    assert deltas[-1].finish_reason is FinishReason.ERROR
    assert (deltas[-1].error or "").startswith(REFUSED)


def test_stop_tokens_inside_the_grammar_end_the_answer() -> None:
    (stop,) = BYTES.tokenize(b"x")
    params = sampled(shape("regex", "[0-9]{2}x[0-9]{9}"), stop_token_ids=(stop, BYTE_EOS - 1))
    deltas = run(core(), [params])["r0"]
    assert text_of(deltas)[:2].isdigit()
    assert tokens_of(deltas)[2:] == [stop]
    assert deltas[-1].stop_reason == stop


def test_time_spent_on_grammars_is_counted() -> None:
    engine = core(model(0))
    run(engine, [greedy(5)])
    assert engine.stats().grammar_mask_seconds == 0.0
    assert engine.stats().grammar_compile_seconds == 0.0
    run(engine, [sampled(SHAPES[0])])
    stats = engine.stats()
    assert stats.grammar_compile_seconds > 0.0
    assert stats.grammar_mask_seconds > 0.0
    assert stats.grammar_mask_wait_seconds > 0.0


def test_an_answer_follows_a_choice_token_for_token() -> None:
    texts = [b"abc", b"abd", b"b"]
    engine = core()
    (answer,) = generate(
        engine, PROMPTS[:1], sampled(shape("choice", json.dumps([t.decode() for t in texts])))
    )
    for length, token_id in enumerate(answer):
        assert token_id in by_definition(BYTES, texts, answer[:length])
