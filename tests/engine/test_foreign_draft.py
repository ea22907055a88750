"""Drafts with another vocabulary never change words, and agree where the models do."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import pytest

from engine.core import EngineCore
from engine.model.loader import from_model
from engine.sampling_params import SamplingParams
from engine.structured_output import FreeText, StructuredOutput
from tests.tiny_models import (
    add,
    drain,
    generate,
    greedy,
    make_core,
    random_prompts,
    seeded,
    tiny_llama,
)
from tests.two_vocabularies import (
    TEXT,
    by_heart,
    byte_level,
    draft_texts,
    foreign_core,
    permuted,
    sentencepiece,
    with_rows_moved,
)

METHODS = ["tli", "slem"]
TOKENIZERS = {"byte_level": byte_level, "sentencepiece": sentencepiece}
NUM_TOKENS = 24
TEXTS = [TEXT[:20], TEXT[:75], "Where both", "</s><s>12 € for", "x", "A café 🙂 of drafts"]


def models(kind: str, size: int) -> Any:
    return by_heart(kind, size), TOKENIZERS[kind](size)


def pair(drafts_in: str, target: str = "byte_level", **options: Any) -> EngineCore:
    """A target and a draft that know the same text by heart, in different tokens."""
    return foreign_core(models(target, 400), models(drafts_in, 330), **options)


def plain(target: str = "byte_level", **options: Any) -> EngineCore:
    tokenizer = TOKENIZERS[target](400)
    return make_core(by_heart(target, 400), tokenizer=tokenizer, **options)


def prompts(target: str = "byte_level") -> list[list[int]]:
    encode = partial(TOKENIZERS[target](400).encode, add_special_tokens=False)
    return [encode(text) for text in TEXTS]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("draft", TOKENIZERS)
@pytest.mark.parametrize("target", TOKENIZERS)
@pytest.mark.parametrize("k", [1, 4])
def test_words_are_the_plain_ones(method: str, draft: str, target: str, k: int) -> None:
    for params in (greedy(NUM_TOKENS), seeded(NUM_TOKENS)):
        expected = generate(plain(target), prompts(target), params)
        core = pair(draft, target, method=method, speculation=k)
        assert generate(core, prompts(target), params) == expected
        assert core.stats().speculation.num_draft_tokens > 0
        assert core.kv.usage == 0.0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("draft", TOKENIZERS)
def test_words_of_a_target_that_writes_broken_text_are_the_plain_ones(
    method: str, draft: str
) -> None:
    wordless = random_prompts(6)
    for params in (greedy(NUM_TOKENS), seeded(NUM_TOKENS)):
        expected = generate(make_core(tiny_llama(vocab=400)), wordless, params)
        target = tiny_llama(vocab=400), byte_level(400)
        core = foreign_core(target, models(draft, 330), method=method)
        assert generate(core, wordless, params) == expected
        assert core.stats().speculation.num_draft_tokens > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("draft", TOKENIZERS)
def test_synthetic_acceptance_writes_what_is_drafted(method: str, draft: str) -> None:
    for params in (greedy(NUM_TOKENS), seeded(NUM_TOKENS)):
        core = pair(draft, method=method, speculation=3, synthetic_acceptance="1")
        assert generate(core, prompts(), params) != generate(plain(), prompts(), params)
        assert core.stats().speculation.acceptance_rate == 1.0
        assert core.kv.usage == 0.0
        core = pair(draft, method=method, speculation=3, synthetic_acceptance="0")
        assert generate(core, prompts(), params) == generate(plain(), prompts(), params)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("draft", TOKENIZERS)
def test_drafts_are_accepted_where_both_know_the_text(method: str, draft: str) -> None:
    core = pair(draft, method=method)
    generate(core, [prompts()[1]], greedy(40))
    # Not every token of the text is in both vocabularies; as text all of it can be drafted.
    least = 0.15 if method == "tli" else 0.7
    assert core.stats().speculation.acceptance_rate > least


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_the_same_model_under_other_ids_is_accepted_whole(temperature: float) -> None:
    """Its logits are the target's once they are in the target's places, and the noise is too."""
    tokenizer = byte_level(400)
    other, moved = permuted(tokenizer)
    twin = with_rows_moved(tiny_llama(vocab=400), moved)
    core = foreign_core((tiny_llama(vocab=400), tokenizer), (twin, other), "tli")
    generate(core, prompts(), seeded(40, temperature=temperature))
    assert core.stats().speculation.num_draft_tokens > 0
    assert core.stats().speculation.acceptance_rate == 1.0


def test_strings_are_drafted_with_the_targets_noise() -> None:
    """The same model under other ids; with noise of its own it would rarely say the same."""
    tokenizer = byte_level(400)
    other, moved = permuted(tokenizer)
    rates = []
    for temperature in (0.0, 1.5):
        twin = with_rows_moved(deepcopy(by_heart("byte_level", 400)), moved)
        core = foreign_core(models("byte_level", 400), (twin, other), "slem")
        generate(core, [prompts()[1]], seeded(30, temperature=temperature))
        rates.append(core.stats().speculation.acceptance_rate)
    assert rates[0] > 0.9
    assert rates[1] > 0.4


PARAMS = [
    seeded(NUM_TOKENS, repetition_penalty=1.3, top_p=0.9, temperature=0.7),
    seeded(NUM_TOKENS, presence_penalty=1.0, frequency_penalty=0.5, min_p=0.02),
    seeded(NUM_TOKENS, logit_bias={35: 3.0, 39: -100.0}, top_k=20),
    seeded(NUM_TOKENS, allowed_token_ids=tuple(range(300, 340))),
    seeded(NUM_TOKENS, max_draft_tokens=0),
    greedy(NUM_TOKENS, repetition_penalty=1.5, max_draft_tokens=2),
]


@pytest.mark.parametrize("method", METHODS)
def test_words_are_the_plain_ones_under_penalties_and_filters(method: str) -> None:
    expected = generate(plain(), prompts(), PARAMS)
    for draft in TOKENIZERS:
        assert generate(pair(draft, method=method), prompts(), PARAMS) == expected


@pytest.mark.parametrize("method", METHODS)
def test_words_are_the_plain_ones_under_grammars(method: str) -> None:
    shapes = [
        StructuredOutput(kind="regex", text="[0-9]{3}-[a-z]+(, [0-9]{3}-[a-z]+){1,2}\\."),
        StructuredOutput(kind="choice", text='["the small model", "12 \u20ac", "cafés"]'),
        StructuredOutput(kind="regex", text="[a-z ]{12}", free=FreeText(until="e")),
    ]
    params = [
        SamplingParams(
            temperature=temperature,
            seed=4,
            max_tokens=20,
            structured_output=structured,
            repetition_penalty=1.1,
        )
        for structured in shapes
        for temperature in (0.0, 1.0)
    ]
    expected = generate(plain(), prompts(), params)
    core = pair("sentencepiece", method=method)
    assert generate(core, prompts(), params) == expected
    assert core.stats().by_drafter["draft_model"].num_draft_tokens > 0


@pytest.mark.parametrize("method", METHODS)
def test_what_a_grammar_forces_is_drafted_though_the_draft_has_no_word_for_it(method: str) -> None:
    shape = StructuredOutput(
        kind="regex", text="the small model: [0-9] caf\u00e9s, or none at all!"
    )
    params = SamplingParams(seed=4, max_tokens=40, structured_output=shape)
    core = pair("sentencepiece", method=method, speculation=8)
    assert generate(core, prompts()[:2], params) == generate(plain(), prompts()[:2], params)
    assert core.stats().speculation.acceptance_rate > 0.6
    assert core.stats().speculation.tokens_per_target_pass > 2.5


@pytest.mark.parametrize("method", METHODS)
def test_a_text_is_caught_up_in_pieces_no_larger_than_a_step(method: str) -> None:
    expected = generate(plain(), prompts(), greedy(NUM_TOKENS))
    core = pair("byte_level", method=method, max_num_batched_tokens=7, max_num_seqs=1)
    assert generate(core, prompts(), greedy(NUM_TOKENS)) == expected
    assert core.stats().speculation.num_accepted_tokens > 0


@pytest.mark.parametrize("method", METHODS)
def test_preempted_requests_write_the_same_words(method: str) -> None:
    expected = generate(plain(), prompts(), greedy(NUM_TOKENS))
    core = pair("sentencepiece", method=method, num_blocks=26, max_model_len=80, speculation=2)
    assert generate(core, prompts(), greedy(NUM_TOKENS)) == expected
    assert core.scheduler.num_preemptions > 0, "the pool was meant to be too small"
    draft_texts(core).check_invariants()


@pytest.mark.parametrize("method", METHODS)
def test_cached_prefixes_write_the_same_words(method: str) -> None:
    expected = generate(plain(), prompts(), seeded(NUM_TOKENS))
    core = pair("byte_level", method=method, block_size=4)
    for _ in range(2):
        assert generate(core, prompts(), seeded(NUM_TOKENS)) == expected
    assert core.stats().num_prefix_hit_tokens > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_request_that_is_gone_gives_its_drafts_blocks_back(method: str) -> None:
    core = pair("byte_level", method=method)
    for name in ("a", "b"):
        add(core, prompts()[1], greedy(200), name)
    for _ in range(3):
        core.step()
    core.abort(["a-0"])
    core.step()
    held = draft_texts(core).num_held_blocks
    core.abort(["b-0"])
    add(core, prompts()[0], greedy(4), "c")
    drain(core)
    texts = draft_texts(core)
    texts.check_invariants()
    assert 0 < texts.num_held_blocks <= held


@pytest.mark.parametrize("method", METHODS)
def test_a_draft_with_fewer_positions_stops_drafting_and_the_target_goes_on(method: str) -> None:
    draft, tokenizer = models("byte_level", 330)
    short = from_model(draft, name="short draft")
    short.max_model_len = 24
    expected = generate(plain(), [prompts()[0]], greedy(40))
    core = foreign_core(models("byte_level", 400), (short, tokenizer), method)
    assert generate(core, [prompts()[0]], greedy(40)) == expected
    assert 0 < core.stats().speculation.num_accepted_tokens < 24


@pytest.mark.parametrize("method", METHODS)
def test_tokenizers_may_have_more_tokens_than_their_models(method: str) -> None:
    narrow = [text[:8] for text in random_prompts(3)]
    target = tiny_llama(vocab=300), byte_level(400)
    expected = generate(make_core(tiny_llama(vocab=300)), narrow, seeded(NUM_TOKENS))
    for tokenizer in (byte_level(330, 1), sentencepiece(330)):
        core = foreign_core(target, (tiny_llama(1, vocab=280), tokenizer), method)
        assert generate(core, narrow, seeded(NUM_TOKENS)) == expected


@pytest.mark.parametrize("method", METHODS)
def test_lookups_go_before_a_draft_of_another_vocabulary(method: str) -> None:
    expected = generate(plain(), prompts(), greedy(NUM_TOKENS))
    core = pair("sentencepiece", method=method, draft="ngram,in memory")
    assert generate(core, prompts(), greedy(NUM_TOKENS)) == expected
    assert {"ngram", "draft_model"} <= core.stats().by_drafter.keys()


@pytest.mark.parametrize("method", METHODS)
def test_numbers_of_drafts_choose_themselves(method: str) -> None:
    expected = generate(plain(), prompts(), seeded(NUM_TOKENS))
    core = pair("byte_level", method=method, speculation="auto")
    assert generate(core, prompts(), seeded(NUM_TOKENS)) == expected
