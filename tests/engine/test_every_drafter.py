"""Law 1 over every drafter: whoever drafts, and however much, the words and their law are the same.

Token for token beside an engine that drafts nothing, on a random model over bytes and on a trained
one, and by chi-square against the model's own probabilities, with a negative control.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from engine.core import EngineCore
from engine.model.loader import from_model, load_model
from engine.request import Request
from engine.sampling_params import SamplingParams
from engine.speculative.pass_prices import PassPrices
from engine.speculative.verifier import Verification
from engine.structured_output import StructuredOutput
from engine.tokenization import load_tokenizer
from tests.byte_tokenizer import byte_tokenizer
from tests.engine.drafters import DRAFTERS, Target, costs_that_invite, drafted_core
from tests.engine.laws import SCORE_LIMIT, Law, accept_one_too_many, chi_square
from tests.tiny_models import generate, greedy, seeded, tiny_llama

NUM_TOKENS = 20
DRAWING = {"max_num_seqs": 256, "max_num_batched_tokens": 4096}
SHAPE = StructuredOutput(kind="regex", text="The (dog|cat) likes to [a-z]{3,6} all day long\\.")
BYTES = byte_tokenizer()
TEXTS = [
    "Once upon a time, there was a little dog. The little dog",
    "One day, a big red ball and a small red ball",
    "He said: no, no, no, no",
    "Tom and Sue went to the park. Tom",
    "The sun was",
    "A dog saw a cat. A dog saw",
    "On and on",
    "My pet: ",
    "My pets: ",
]
PARAMS = [
    greedy(NUM_TOKENS),
    seeded(NUM_TOKENS),
    seeded(NUM_TOKENS, repetition_penalty=1.3, top_p=0.9, temperature=0.7),
    seeded(NUM_TOKENS, presence_penalty=1.0, frequency_penalty=0.5, min_p=0.05),
    seeded(NUM_TOKENS, logit_bias={104: 2.0, 109: -100.0}, top_k=20, temperature=0.5),
    greedy(NUM_TOKENS, repetition_penalty=1.2, bad_words_token_ids=((101,), (110, 111))),
    seeded(NUM_TOKENS, allowed_token_ids=(64, 65, 66)),
    SamplingParams(temperature=0.0, max_tokens=40, structured_output=SHAPE),
    SamplingParams(seed=5, max_tokens=40, structured_output=SHAPE, min_p=0.02),
]


def ids(text: str) -> list[int]:
    """The tokens of a text, a byte each."""
    return list(BYTES.encode(text, add_special_tokens=False))


@dataclass
class Case:
    """A target, what it is asked, and what it writes when nobody drafts."""

    target: Target
    prompts: list[list[int]] = field(init=False)
    words: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        encode = self.target.tokenizer.encode
        self.prompts = [list(encode(text, add_special_tokens=False)) for text in TEXTS]
        self.words = generate(drafted_core(self.target, None, "off"), self.prompts, PARAMS)

    def predicting(self) -> list[SamplingParams]:
        """The settings with predictions: what will be written, but for a token here and there."""
        edited = [[*words[:7], words[0], *words[8:]] for words in self.words]
        pairs = zip(PARAMS, edited, strict=True)
        return [replace(own, predicted_token_ids=tuple(words)) for own, words in pairs]


@pytest.fixture(scope="module")
def letters() -> Case:
    """A random model over bytes."""
    return Case(Target(from_model(tiny_llama(layers=3, vocab=258)), BYTES))


@pytest.fixture(scope="module")
def stories(shared_dir: Path) -> Case:
    """A trained model, where it is at hand."""
    folder = shared_dir / "models" / "tinystories-260k"
    if not (folder / "config.json").is_file():
        pytest.skip("../shared/models/tinystories-260k is not beside this checkout")
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer is not None, "it comes with one"
    return Case(Target(load_model(str(folder), device=torch.device("cpu")), tokenizer))


@pytest.fixture(autouse=True)
def _drafts_look_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `auto` draft: what is timed says that it pays, and what steps take is not learnt."""
    monkeypatch.setattr("engine.speculation.load_or_measure", costs_that_invite)
    monkeypatch.setattr(PassPrices, "observe", lambda *_: None)


def check_words(case: Case, core: EngineCore, drafter: str) -> None:
    """Ask alone and in company; past answers, cached prefixes and all."""
    params = case.predicting() if drafter == "prediction" else PARAMS
    for index in (0, 3):
        (words,) = generate(core, [case.prompts[index]], params[index])
        assert words == case.words[index]
    assert generate(core, case.prompts, params) == case.words
    assert core.kv.usage == 0.0
    check_drafters(core, drafter)


def check_drafters(core: EngineCore, drafter: str) -> None:
    """Of several drafters `auto` may prefer one; where nobody chooses, all have their turn."""
    wanted, told = DRAFTERS[drafter].names, core.stats().by_drafter.keys()
    assert wanted & told
    if not core.config.speculation.is_auto:
        assert wanted <= told


@pytest.mark.parametrize("speculation", [4, "auto"])
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_words_over_bytes_are_the_plain_ones(
    drafter: str, speculation: int | str, letters: Case
) -> None:
    check_words(letters, drafted_core(letters.target, drafter, speculation), drafter)


@pytest.mark.parametrize("speculation", [4, "auto"])
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_words_of_a_trained_model_are_the_plain_ones(
    drafter: str, speculation: int | str, stories: Case
) -> None:
    check_words(stories, drafted_core(stories.target, drafter, speculation), drafter)


# Draws of four letters after a text that has gone on from its end with each of them: free, or one
# of a few words.
NUM_DRAWS = 1000
TEMPERATURE = 1.5
PROMPT = "cacbccabcbac"
WORDS = ("abca", "abcb", "bcaa", "bcab", "caba", "ccca")
ANSWERS = {"free": tuple(map("".join, itertools.product("abc", repeat=4))), "word": WORDS}
SETTINGS: dict[str, dict[str, Any]] = {
    "free": {"allowed_token_ids": tuple(ids("abc"))},
    "word": {"structured_output": StructuredOutput(kind="choice", text=json.dumps(WORDS))},
}


def draw(core: EngineCore, kind: str, predicted: str = "") -> list[list[int]]:
    """Draw one answer per seed."""
    own = SamplingParams(temperature=TEMPERATURE, max_tokens=4, **SETTINGS[kind])
    own = replace(own, predicted_token_ids=tuple(ids(predicted)))
    params = [replace(own, seed=seed) for seed in range(NUM_DRAWS)]
    return generate(core, [ids(PROMPT)] * NUM_DRAWS, params)


def law_of(model: PreTrainedModel, answers: Sequence[str]) -> Law:
    """The model's own law over answers: each letter among those that can still follow."""

    @cache
    def chances(beginning: str) -> dict[str, float]:
        place = len(beginning)
        letters = sorted({a[place] for a in answers if a.startswith(beginning)})
        logits = model(input_ids=torch.tensor([ids(PROMPT + beginning)])).logits[0, -1]
        logits = logits[ids("".join(letters))].double()
        return dict(zip(letters, (logits / TEMPERATURE).softmax(-1).tolist(), strict=True))

    return {
        tuple(ids(a)): math.prod(chances(a[:place])[a[place]] for place in range(len(a)))
        for a in answers
    }


@pytest.fixture(scope="module")
def laws() -> dict[str, Law]:
    """What transformers itself says."""
    model = tiny_llama(layers=3, vocab=258)
    with torch.inference_mode():
        return {kind: law_of(model, answers) for kind, answers in ANSWERS.items()}


@pytest.fixture(scope="module")
def plain_draws(letters: Case) -> dict[str, list[list[int]]]:
    """What is drawn when nobody drafts."""
    core = drafted_core(letters.target, None, "off", **DRAWING)
    return {kind: draw(core, kind) for kind in ANSWERS}


@pytest.mark.parametrize("speculation", [2, "auto"])
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_draws_have_the_models_law_and_are_the_plain_draws(
    drafter: str,
    speculation: int | str,
    letters: Case,
    laws: dict[str, Law],
    plain_draws: dict[str, list[list[int]]],
) -> None:
    kind = "word" if drafter == "grammar" else "free"
    core = drafted_core(letters.target, drafter, speculation, **DRAWING)
    draws = draw(core, kind, "abcb" if drafter == "prediction" else "")
    assert DRAFTERS[drafter].names & core.stats().by_drafter.keys()
    assert core.stats().speculation.num_draft_tokens > NUM_DRAWS / 4
    assert chi_square(draws, laws[kind]) < SCORE_LIMIT
    assert draws == plain_draws[kind]


@pytest.mark.parametrize("drafter", ["random", "suffix"])
def test_the_statistic_notices_a_draft_that_is_accepted_unverified(
    drafter: str, letters: Case, laws: dict[str, Law], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(
        sampled: torch.Tensor,
        drafts: torch.Tensor,
        num_draft_tokens: Sequence[int],
        _requests: Sequence[Request],
    ) -> Verification:
        rows = zip(drafts.tolist(), num_draft_tokens, strict=True)
        return accept_one_too_many(sampled.tolist(), [row[:count] for row, count in rows])

    core = drafted_core(letters.target, drafter, 2, **DRAWING)
    monkeypatch.setattr(core._speculation, "verify", broken)
    draws = draw(core, "free")
    assert chi_square(draws, laws["free"]) > SCORE_LIMIT
