"""Every feature, under every drafter, streamed and whole, greedy and seeded: the same answer.

The demo pair behind the real app. What is compared with speculation off is everything that an
answer says but its ids, its times and how the drafts did.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx
import pytest

from engine.config import EngineConfig
from engine.config_files import apply_options, resolve
from engine.core import EngineCore
from engine.tokenization import load_tokenizer
from server.app import create_app
from server.config import ServerConfig
from server.served import make_served
from tests.conftest import DemoPair
from tests.server.harness import MODEL, InlineEngine
from tests.server.reassembly import REASSEMBLE, Json

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
DRAFTERS: dict[str, dict[str, Any]] = {
    "draft_model": {"speculation": 4},
    "auto": {"speculation": "auto"},
    "ngram": {"draft": "ngram", "speculation": 4},
    "suffix": {"draft": "suffix", "speculation": 6},
}
OFF = {"speculation": "off"}
AT_ONCE = 32
NUM_TOKENS = 12

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "mood": {"enum": ["happy", "sad"]},
    },
    "required": ["name", "age", "mood"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": PERSON}}
    for name in ("greet", "find")
]
ASK = [{"role": "user", "content": "Tell me a story about a dog and a little girl."}]
PREDICTED = "Once upon a time, there was a little girl named Lily. She loved to play outside."

CHAT_FEATURES: dict[str, Json] = {
    "plain": {},
    "n": {"n": 2},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, *ASK]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello."}]}]},
    "top_p": {"top_p": 0.8},
    "top_k": {"top_k": 12},
    "min_p": {"min_p": 0.05},
    "repetition_penalty": {"repetition_penalty": 1.3},
    "presence_and_frequency": {"presence_penalty": 1.0, "frequency_penalty": 0.5},
    "logit_bias": {"logit_bias": {"30": 5.0, "40": -100}},
    "allowed_token_ids": {"allowed_token_ids": list(range(20, 300))},
    "bad_words": {"bad_words": ["the", "there was", "a"]},
    "stop": {"stop": ["girl", " and", "?"]},
    "stop_shown": {"stop": "was", "include_stop_str_in_output": True},
    "stop_token_ids": {"stop_token_ids": list(range(60, 90))},
    "min_tokens": {"min_tokens": 10},
    "ignore_eos": {"ignore_eos": True, "skip_special_tokens": False},
    "max_tokens": {"max_tokens": 1},
    "logprobs": {"logprobs": True, "top_logprobs": 5},
    "prompt_logprobs": {"prompt_logprobs": 2},
    "json_object": {"response_format": {"type": "json_object"}},
    "json_schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": PERSON, "strict": True},
        },
        "max_tokens": 40,
    },
    "regex": {"structured_outputs": {"regex": "[A-Z][a-z]{2,8}( [a-z]{1,8}){3}[.!]"}},
    "choice": {"structured_outputs": {"choice": ["a red fox", "a red hen", "two blue whales"]}},
    "grammar": {"structured_outputs": {"grammar": 'start: ("ha" | "hi")+ "!"'}},
    "compact_json": {
        "structured_outputs": {"json": PERSON, "disable_any_whitespace": True},
        "max_tokens": 40,
    },
    "tools_offered": {"tools": TOOLS},
    "tools_required": {"tools": TOOLS, "tool_choice": "required", "max_tokens": 48},
    "tool_named": {
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "find"}},
        "parallel_tool_calls": False,
        "max_tokens": 48,
    },
    "prediction": {"prediction": {"type": "content", "content": PREDICTED}, "max_tokens": 24},
    "continued": {
        "messages": [*ASK, {"role": "assistant", "content": "Once upon"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
    },
    "cache_salt": {"cache_salt": "mine"},
    "priority": {"priority": 3},
    "speculation_off": {"speculation": {"enabled": False}},
    "speculation_short": {"speculation": {"max_draft_tokens": 1, "report": True}},
    "everything": {
        "n": 2,
        "top_p": 0.9,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.3,
        "logit_bias": {"50": 1.5},
        "logprobs": True,
        "top_logprobs": 2,
        "stop": ["zzz"],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": PERSON},
        },
        "max_tokens": 40,
    },
}
TEXT_FEATURES: dict[str, Json] = {
    "plain": {},
    "prompts": {"prompt": ["The dog", "A bird", "The dog"], "n": 2},
    "token_ids": {"prompt": [[100, 200, 300], [77]]},
    "echo_with_logprobs": {"echo": True, "logprobs": 3},
    "only_scored": {"echo": True, "logprobs": 1, "max_tokens": 0},
    "prompt_logprobs": {"prompt_logprobs": 1, "logprobs": 0},
    "stop": {"stop": [".", "and"], "logprobs": 2},
    "choice": {"structured_outputs": {"choice": ["yes", "no", "maybe"]}},
    "penalties": {"repetition_penalty": 1.2, "top_k": 30},
}
RESPONSES_FEATURES: dict[str, Json] = {
    "plain": {},
    "logprobs": {"include": ["message.output_text.logprobs"], "top_logprobs": 3},
    "json_schema": {
        "text": {"format": {"type": "json_schema", "name": "person", "schema": PERSON}},
        "max_output_tokens": 40,
    },
    "tools_required": {
        "tools": [{"type": "function", **TOOLS[0]["function"], "strict": True}],
        "tool_choice": "required",
        "max_output_tokens": 48,
    },
}
MESSAGES_FEATURES: dict[str, Json] = {
    "plain": {"system": "Be brief."},
    "stop_sequences": {"stop_sequences": ["girl", "dog"]},
    "any_tool": {
        "tools": [{"name": "greet", "description": "greet", "input_schema": PERSON}],
        "tool_choice": {"type": "any"},
        "max_tokens": 48,
    },
}
BODIES: dict[str, tuple[Json, dict[str, Json]]] = {
    CHAT: ({"messages": ASK, "max_tokens": NUM_TOKENS}, CHAT_FEATURES),
    TEXT: ({"prompt": "Once upon a time", "max_tokens": NUM_TOKENS}, TEXT_FEATURES),
    RESPONSES: (
        {"input": "Where can I eat?", "max_output_tokens": NUM_TOKENS, "store": False},
        RESPONSES_FEATURES,
    ),
    MESSAGES: ({"messages": ASK, "max_tokens": NUM_TOKENS}, MESSAGES_FEATURES),
}
# Refused by name in a stream.
WHOLE_ONLY = {(CHAT, "prompt_logprobs")}
SAMPLING: dict[str, Json] = {"t0": {"temperature": 0.0}, "t1": {"temperature": 1.0, "seed": 7}}
# Ids, times, and how caching and drafts went, which are allowed to differ.
VOLATILE = {
    *("id", "call_id", "item_id", "created", "created_at", "completed_at", "system_fingerprint"),
    *("metrics", "usage", "type"),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One cell of the matrix, whoever drafts."""

    path: str
    feature: str
    sampling: str
    is_streamed: bool

    @property
    def body(self) -> Json:
        common, features = BODIES[self.path]
        sampling = SAMPLING[self.sampling]
        return {"model": MODEL, **common, **sampling, **features[self.feature]}

    @property
    def name(self) -> str:
        return f"{self.path} {self.feature} {self.sampling}"


def cases(*, is_streamed: bool) -> list[Case]:
    return [
        Case(path, feature, sampling, is_streamed)
        for path, (_, features) in BODIES.items()
        for feature in features
        for sampling in SAMPLING
        if not (is_streamed and (path, feature) in WHOLE_ONLY)
    ]


@asynccontextmanager
async def serving_demo(options: dict[str, Any]) -> AsyncIterator[httpx.AsyncClient]:
    """The real app over a real engine in this process."""
    config = resolve(apply_options(EngineConfig(), {"kv_cache_memory": "256MiB", **options}))
    engine = InlineEngine(EngineCore(config))
    await engine.start()
    served = make_served(engine, config, name=MODEL)
    assert config.model.model is not None
    tokenizer = load_tokenizer(config.model.model)
    assert tokenizer is not None
    served.install_tokenizer(tokenizer)
    transport = httpx.ASGITransport(app=create_app(served, ServerConfig()))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://localhost", timeout=300
    ) as client:
        yield client
    await engine.close()


async def ask(client: httpx.AsyncClient, case: Case, seats: asyncio.Semaphore) -> Any:
    async with seats:
        body = case.body | ({"stream": True} if case.is_streamed else {})
        response = await client.post(case.path, json=body)
    assert response.status_code == 200, f"{case.name}: {response.text}"
    if case.is_streamed:
        return comparable(REASSEMBLE[case.path](response.text))
    whole = response.json()
    return comparable(whole.get("choices", whole))


def comparable(answer: Any) -> Any:
    """Leave out what may differ from call to call."""
    if isinstance(answer, dict):
        return {
            name: comparable(value)
            for name, value in answer.items()
            if name not in VOLATILE and not (name == "role" or value is None)
        }
    if isinstance(answer, list):
        return [comparable(value) for value in answer]
    return answer


def assert_same(mine: Any, theirs: Any, where: str) -> None:
    """Compare byte for byte; log probabilities may differ in their last digits."""
    assert type(mine) is type(theirs), where
    if isinstance(mine, dict):
        assert set(mine) == set(theirs), where
        for name in mine:
            assert_same(mine[name], theirs[name], f"{where}.{name}")
    elif isinstance(mine, list):
        assert len(mine) == len(theirs), f"{where}: {mine} is not {theirs}"
        for place, (one, other) in enumerate(zip(mine, theirs, strict=True)):
            assert_same(one, other, f"{where}[{place}]")
    elif isinstance(mine, float):
        assert math.isclose(mine, theirs, rel_tol=1e-4, abs_tol=1e-4), f"{where}: {mine} {theirs}"
    else:
        assert mine == theirs, f"{where}: {mine!r} is not {theirs!r}"


def run_all(options: dict[str, Any], wanted: list[Case]) -> dict[Case, Any]:
    async def scenario() -> list[Any]:
        seats = asyncio.Semaphore(AT_ONCE)
        async with serving_demo(options) as client:
            return await asyncio.gather(*(ask(client, case, seats) for case in wanted))

    return dict(zip(wanted, asyncio.run(scenario()), strict=True))


@cache
def plain_answers() -> dict[Case, Any]:
    """Every feature without speculation, whole."""
    return run_all(OFF, cases(is_streamed=False))


def half_of_the_cases(half: int) -> list[Case]:
    """Give greedy whole answers and seeded streams; or seeded whole ones and greedy streams."""
    everything = cases(is_streamed=False) + cases(is_streamed=True)
    return [case for case in everything if (case.is_streamed == (case.sampling == "t1")) != half]


def whole(case: Case) -> Case:
    return Case(case.path, case.feature, case.sampling, is_streamed=False)


def test_features_have_answers_worth_comparing(demo_pair: DemoPair) -> None:
    answers = plain_answers()
    said = {case: repr(answer) for case, answer in answers.items()}
    for feature in CHAT_FEATURES:
        assert said[Case(CHAT, feature, "t0", False)], feature
    greedy = Case(CHAT, "plain", "t0", False)
    assert said[greedy] != said[Case(CHAT, "plain", "t1", False)]
    for feature in ("repetition_penalty", "allowed_token_ids", "stop", "json_schema", "regex"):
        assert said[Case(CHAT, feature, "t0", False)] != said[greedy], feature
    calls = answers[Case(CHAT, "tools_required", "t0", False)][0]["message"]["tool_calls"]
    assert calls[0]["function"]["name"] in {"greet", "find"}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("half", [0, 1])
def test_every_feature_answers_the_same_under_every_drafter(
    drafter: str, half: int, demo_pair: DemoPair
) -> None:
    expected = plain_answers()
    for case, answer in run_all(DRAFTERS[drafter], half_of_the_cases(half)).items():
        assert_same(answer, expected[whole(case)], case.name)


@pytest.mark.timeout(600)
def test_every_feature_streams_what_it_answers_whole(demo_pair: DemoPair) -> None:
    expected = plain_answers()
    for case, answer in run_all(OFF, cases(is_streamed=True)).items():
        assert_same(answer, expected[whole(case)], case.name)
