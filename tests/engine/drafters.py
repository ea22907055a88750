"""Every kind of drafter around one target, for tests that must hold whoever drafts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from engine.config import SLEM, TLI, EngineConfig
from engine.config_files import apply_options
from engine.core import EngineCore
from engine.model.loader import LoadedModel, from_model
from engine.model_pair import ModelPair
from engine.request import DRAFT_MODEL, GRAMMAR, NGRAM, PREDICTION, SUFFIX
from engine.speculative.step_costs import CostGrid, StepCosts
from engine.tokenization import Tokenizer
from engine.vocabularies import Vocabulary, choose_vocabulary
from tests.tiny_models import tiny_llama
from tests.two_vocabularies import by_heart, byte_level, sentencepiece


class Target(NamedTuple):
    """A model that is drafted for, and its tokenizer."""

    model: LoadedModel
    tokenizer: Tokenizer


class Drafter(NamedTuple):
    """How a core gets a drafter.

    Attributes:
        setting: what `--draft` says.
        pair: puts a target and who drafts for it together.
        names: who is told to have drafted.
    """

    setting: str
    pair: Callable[[Target], ModelPair]
    names: frozenset[str]


def alone(target: Target) -> ModelPair:
    """No model drafts."""
    return ModelPair(target.model, load_tokenizer=lambda: target.tokenizer)


def with_itself(target: Target) -> ModelPair:
    """The target drafts for itself, and is always right."""
    return replace(alone(target), draft=target.model)


def with_random(target: Target) -> ModelPair:
    """A model that knows nothing drafts, and is nearly always wrong."""
    return replace(alone(target), draft=from_model(tiny_llama(1, vocab=target.model.vocab_size)))


def with_fewer_layers(target: Target) -> ModelPair:
    """The target's first and last layer draft."""
    return replace(alone(target), kept_layers=(0, len(target.model.layers) - 1))


def with_foreign(target: Target, method: str) -> ModelPair:
    """A model with tokens of its own drafts."""
    draft, tokenizer = {
        TLI: (by_heart("byte_level", 330), byte_level(330)),
        SLEM: (by_heart("sentencepiece", 330), sentencepiece(330)),
    }[method]
    loaded = from_model(draft)
    foreign = choose_vocabulary(
        method, Vocabulary(target.model, target.tokenizer), Vocabulary(loaded, tokenizer)
    )
    return replace(alone(target), draft=loaded, foreign=foreign)


_MODEL = "in memory"
DRAFTERS = {
    "itself": Drafter(_MODEL, with_itself, frozenset({DRAFT_MODEL})),
    "random": Drafter(_MODEL, with_random, frozenset({DRAFT_MODEL})),
    "layer_skip": Drafter("layer-skip", with_fewer_layers, frozenset({DRAFT_MODEL})),
    "tli": Drafter(_MODEL, partial(with_foreign, method=TLI), frozenset({DRAFT_MODEL})),
    "slem": Drafter(_MODEL, partial(with_foreign, method=SLEM), frozenset({DRAFT_MODEL})),
    "ngram": Drafter("ngram", alone, frozenset({NGRAM})),
    "suffix": Drafter("suffix", alone, frozenset({SUFFIX})),
    "prediction": Drafter("suffix", alone, frozenset({PREDICTION})),
    "grammar": Drafter("suffix", alone, frozenset({GRAMMAR})),
    "ngram_and_model": Drafter("ngram,in memory", with_itself, frozenset({NGRAM, DRAFT_MODEL})),
    "suffix_and_model": Drafter("suffix,in memory", with_random, frozenset({SUFFIX, DRAFT_MODEL})),
}


def drafted_core(
    target: Target, drafter: str | None, speculation: int | str, **options: Any
) -> EngineCore:
    """Make a core in which one of `DRAFTERS`, or nobody, drafts."""
    kind = Drafter("none", alone, frozenset()) if drafter is None else DRAFTERS[drafter]
    options = {"kv_cache_memory": "16MiB", "draft": kind.setting, **options}
    config = apply_options(EngineConfig(), {**options, "speculation": speculation})
    return EngineCore(config, kind.pair(target))


def costs_that_invite(*_: object) -> StepCosts:
    """Stand for what is timed: rows cost nothing and drafts little, so that `auto` drafts."""
    target, draft = (
        CostGrid([1, 8], [1, 9], [[0.01, 0.01]] * 2),
        CostGrid([1, 8], [1], [[1e-4]] * 2),
    )
    return StepCosts(target, draft)
