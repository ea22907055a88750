"""No field is forgotten: each changes the key of an answer, or is known not to matter.

What does not matter is asked for twice, from memory and anew, and must be answered alike.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig, ModelConfig
from engine.door import ModelInfo, make_requests
from engine.request import Request, RequestDelta
from engine.sampling_params import SamplingParams
from engine.structured_output import StructuredOutput
from server.config import ServerConfig
from server.protocol.chat import ChatCompletionRequest
from server.protocol.completions import CompletionRequest
from server.protocol.messages import MessagesRequest
from server.protocol.responses import ResponsesRequest
from server.protocol.sampling import SpeculationFields, StreamOptions
from server.protocol.wire import WireModel
from server.response_cache.answer_key import UNKEYED_OF_REQUESTS, answer_key
from server.response_cache.model_identity import ModelIdentity
from server.response_cache.tape import KeptDelta
from tests.byte_tokenizer import byte_tokenizer
from tests.doubles import FakeCore
from tests.server.harness import MODEL, run, serving
from tests.server.remembering import CHAT, COMPLETIONS, MESSAGES, RESPONSES, ask, outcome, same
from tests.server.responses import TOOL_TEMPLATE, WEATHER

CONFIG = ServerConfig(
    response_cache=True, response_cache_path="memory", served_model_name=(MODEL, "other")
)
# Messages have an end, which one that is continued lacks.
ENDED = TOOL_TEMPLATE.replace("{{ message['content'] }}", "{{ message['content'] }}|")
TEMPLATE = "{{ mood }}{{ reasoning_effort }}{{ enable_thinking }}" + ENDED
WIRES: dict[str, type[WireModel]] = {
    CHAT: ChatCompletionRequest,
    COMPLETIONS: CompletionRequest,
    MESSAGES: MessagesRequest,
    RESPONSES: ResponsesRequest,
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
STRICT = {**WEATHER, "strict": True}
CHAT_TOOL = {
    "type": "function",
    "function": {k: v for k, v in STRICT.items() if k != "type"},
}
MESSAGES_TOOL = {"name": "weather", "input_schema": WEATHER["parameters"], "strict": True}
THINKS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "so"}]
JSON_FORMAT = {"type": "json_schema", "schema": SCHEMA}
BASE = {"temperature": 1.0, "seed": 7}

# By field: what it is changed to, and what else is asked for, before and after.
Change = tuple[Any, dict[str, Any]]
SHARED: dict[str, Change] = {
    "temperature": (0.5, {}),
    "top_p": (0.5, {}),
    "top_k": (5, {}),
    "min_p": (0.1, {}),
    "repetition_penalty": (1.5, {}),
    "presence_penalty": (0.5, {}),
    "frequency_penalty": (0.5, {}),
    "logit_bias": ({"5": 1.0}, {"logit_bias": {"5": 2.0}}),
    "allowed_token_ids": ([97, 98, 99, 104, 105], {}),
    "bad_words": (["x"], {}),
    "seed": (8, {}),
    "max_tokens": (11, {}),
    "min_tokens": (1, {}),
    "stop_token_ids": ([1], {}),
    "ignore_eos": (True, {}),
    "skip_special_tokens": (False, {}),
    "structured_outputs": ({"choice": ["a"]}, {}),
    "speculation": ({"enabled": False}, {}),
    "cache_salt": ("salt", {}),
}
OPENAIS = SHARED | {
    "n": (2, {}),
    "stop": ("zz", {}),
    "include_stop_str_in_output": (True, {}),
    "response_format": ({"type": "json_object"}, {}),
    "guided_json": (SCHEMA, {}),
    "guided_regex": ("a+", {}),
    "guided_choice": (["a", "b"], {}),
    "guided_grammar": ('start: "a"', {}),
    "guided_whitespace_pattern": ("", {"guided_json": SCHEMA}),
}
MATTERS: dict[str, dict[str, Change]] = {
    CHAT: OPENAIS
    | {
        "messages": ([{"role": "user", "content": "ho"}], {}),
        "max_completion_tokens": (11, {"max_tokens": None, "max_completion_tokens": 12}),
        "logprobs": (True, {}),
        "top_logprobs": (1, {"logprobs": True}),
        "prompt_logprobs": (1, {}),
        "tools": ([CHAT_TOOL], {}),
        "tool_choice": ("required", {"tools": [CHAT_TOOL]}),
        "parallel_tool_calls": (False, {"tools": [CHAT_TOOL], "tool_choice": "required"}),
        "reasoning_effort": ("high", {}),
        "prediction": ({"type": "content", "content": "x"}, {}),
        "add_generation_prompt": (False, {}),
        "continue_final_message": (True, {"messages": THINKS, "add_generation_prompt": False}),
        "chat_template_kwargs": ({"mood": "calm"}, {}),
    },
    COMPLETIONS: OPENAIS
    | {
        "prompt": ("abd", {}),
        "best_of": (2, {}),
        "logprobs": (1, {}),
        "prompt_logprobs": (1, {}),
        "prediction": ({"type": "content", "content": "x"}, {}),
    },
    MESSAGES: SHARED
    | {
        "messages": ([{"role": "user", "content": "ho"}], {}),
        "system": ("be brief", {}),
        "tools": ([MESSAGES_TOOL], {}),
        "tool_choice": ({"type": "any"}, {"tools": [MESSAGES_TOOL]}),
        "thinking": ({"type": "disabled"}, {"thinking": {"type": "adaptive"}}),
        "output_config": ({"format": JSON_FORMAT}, {}),
        "output_format": (JSON_FORMAT, {}),
        "chat_template_kwargs": ({"mood": "calm"}, {}),
        "stop_sequences": (["zz"], {}),
    },
    RESPONSES: {name: change for name, change in OPENAIS.items() if name != "max_tokens"}
    | {
        "input": ("ho", {}),
        "instructions": ("be brief", {}),
        "tools": ([STRICT], {}),
        "tool_choice": ("required", {"tools": [STRICT]}),
        "parallel_tool_calls": (False, {"tools": [STRICT], "tool_choice": "required"}),
        "reasoning": ({"effort": "high"}, {}),
        "text": ({"format": {"type": "json_object"}}, {}),
        "chat_template_kwargs": ({"mood": "calm"}, {}),
        "max_output_tokens": (11, {}),
        "include": (["message.output_text.logprobs"], {}),
        "top_logprobs": (2, {"include": ["message.output_text.logprobs"]}),
    },
}
LABELS: dict[str, Change] = {
    "model": ("other", {}),
    "stream": (True, {}),
    "priority": (3, {}),
    "timeout": (30.0, {}),
}
OPENAIS_LABELS = LABELS | {
    "stream_options": ({"include_usage": True}, {"stream": True}),
    "user": ("me", {}),
    "metadata": ({"a": "b"}, {}),
}
DOES_NOT_MATTER: dict[str, dict[str, Change]] = {
    CHAT: OPENAIS_LABELS
    | {
        "service_tier": ("flex", {}),
        "store": (True, {}),
        "prompt_cache_key": ("key", {}),
        "safety_identifier": ("me", {}),
    },
    COMPLETIONS: OPENAIS_LABELS
    | {
        # It shows what the prompt was.
        "echo": (True, {}),
        # This tokenizer opens no text; where one does, the prompt has other tokens.
        "add_special_tokens": (False, {}),
    },
    MESSAGES: LABELS
    | {
        "metadata": ({"user_id": "me"}, {}),
        "service_tier": ("standard_only", {}),
        "cache_control": ({"type": "ephemeral"}, {}),
        # It takes thinking out of prompts, and there is none in this one.
        "context_management": ({"edits": [{"type": "clear_thinking_20251015"}]}, {}),
    },
    RESPONSES: OPENAIS_LABELS
    | {
        "stream_options": ({"include_usage": True}, {"stream": True}),
        "store": (False, {}),
        "background": (True, {"stream": True}),
        "truncation": ("auto", {}),
        "prompt_cache_key": ("key", {}),
        "safety_identifier": ("me", {}),
    },
}
# `suffix` needs a model with tokens for it; a response to go on from is tested with the others.
ELSEWHERE = {COMPLETIONS: {"suffix"}, RESPONSES: {"previous_response_id"}}
# Of what has fields of its own: whether a changed one is another answer.
NESTED: tuple[tuple[type[WireModel], str, dict[str, tuple[Any, Any, bool]]], ...] = (
    (
        SpeculationFields,
        "speculation",
        {
            "enabled": (True, False, True),
            "max_draft_tokens": (1, 2, True),
            "report": (True, None, True),
        },
    ),
    (
        StreamOptions,
        "stream_options",
        {
            "include_usage": (True, None, False),
            "continuous_usage_stats": (False, None, False),
        },
    ),
)


@pytest.mark.parametrize("path", WIRES)
def test_every_field_of_a_wire_is_on_a_list(path: str) -> None:
    known = WIRES[path].model_fields.keys() - WIRES[path].refused
    matters, does_not = MATTERS[path].keys(), DOES_NOT_MATTER[path].keys()
    assert not matters & does_not
    assert (matters | does_not | ELSEWHERE.get(path, set())) - WIRES[path].refused.keys() == known


@pytest.mark.parametrize(
    ("path", "name"),
    [(p, n) for p in WIRES for n in MATTERS[p] if n not in WIRES[p].refused],
)
def test_what_matters_is_another_answer(path: str, name: str) -> None:
    value, extra = MATTERS[path][name]

    async def scenario() -> None:
        async with serving(config=CONFIG, template=TEMPLATE) as api:
            body = {**BASE, **extra}
            assert outcome(await ask(api, path, **body)) == "miss"
            assert outcome(await ask(api, path, **body)) == "hit"
            assert outcome(await ask(api, path, **{**body, name: value})) == "miss"

    run(scenario)


@pytest.mark.parametrize(("path", "name"), [(p, n) for p in WIRES for n in DOES_NOT_MATTER[p]])
def test_what_does_not_matter_is_answered_as_if_anew(path: str, name: str) -> None:
    value, extra = DOES_NOT_MATTER[path][name]

    async def scenario() -> None:
        async with serving(config=CONFIG, template=TEMPLATE) as api:
            body = {**BASE, **extra}
            assert outcome(await ask(api, path, **body)) == "miss"
            changed = {**body, name: value}
            remembered = await ask(api, path, **changed)
            anew = await ask(api, path, **changed, headers={"cache-control": "no-store"})
            assert (outcome(remembered), outcome(anew)) == ("hit", None)
            assert same(remembered) == same(anew)

    run(scenario)


@pytest.mark.parametrize(("model", "field", "changes"), NESTED)
def test_fields_of_fields(
    model: type[WireModel], field: str, changes: dict[str, tuple[Any, Any, bool]]
) -> None:
    assert changes.keys() == model.model_fields.keys()

    async def scenario() -> None:
        for seed, (name, (before, after, is_other)) in enumerate(changes.items()):
            async with serving(config=CONFIG) as api:
                body = {"temperature": 1, "seed": seed, "stream": True}
                filled = {"include_usage": True} if name == "continuous_usage_stats" else {}
                await ask(api, CHAT, **body, **{field: {**filled, name: before}})
                second = await ask(api, CHAT, **body, **{field: {**filled, name: after}})
                assert outcome(second) == ("miss" if is_other else "hit"), name

    run(scenario)


@pytest.mark.parametrize(
    ("path", "explicit"),
    [
        (CHAT, {"top_p": 1.0, "n": 1, "stop": [], "logit_bias": {}, "presence_penalty": 0}),
        (CHAT, {"max_tokens": None, "max_completion_tokens": 12}),
        (CHAT, {"top_k": -1, "min_p": 0, "tools": [], "tool_choice": "none"}),
        (CHAT, {"response_format": {"type": "text"}, "speculation": {}}),
        (COMPLETIONS, {"prompt": ["abc"], "best_of": 1}),
        (COMPLETIONS, {"prompt": byte_tokenizer().encode("abc")}),
        (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}),
        (RESPONSES, {"input": [{"role": "user", "content": "hi"}], "tool_choice": "auto"}),
    ],
)
def test_a_default_that_is_given_is_the_same(path: str, explicit: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with serving(config=CONFIG) as api:
            assert outcome(await ask(api, path)) == "miss"
            assert outcome(await ask(api, path, **explicit)) == "hit"

    run(scenario)


def test_the_order_of_biases_does_not_matter() -> None:
    async def scenario() -> None:
        async with serving(config=CONFIG) as api:
            await ask(api, CHAT, logit_bias={"5": 1, "6": 2})
            assert outcome(await ask(api, CHAT, logit_bias={"6": 2.0, "5": 1.0})) == "hit"

    run(scenario)


# Another value of each sampling setting.
OTHER_PARAMS: dict[str, Any] = {
    "n": 2,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 3,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "logit_bias": {1: 2.0},
    "allowed_token_ids": (1,),
    "bad_words_token_ids": ((1,),),
    "seed": 8,
    "max_tokens": 5,
    "min_tokens": 1,
    "stop": ("x",),
    "stop_token_ids": (3,),
    "ignore_eos": True,
    "logprobs": 1,
    "skip_special_tokens": False,
    "include_stop_str_in_output": True,
    "prompt_logprobs": 1,
    "structured_output": StructuredOutput(kind="regex", text="a"),
    "max_draft_tokens": 1,
    "predicted_token_ids": (1,),
}
INFO = FakeCore().info


def key_of(params: SamplingParams, prompt: list[int] | None = None, **told: Any) -> bytes:
    requests = make_requests(prompt or [1, 2], params, request_id="r", info=INFO)
    return answer_key([requests], **{"model": "m", "tenant": "t", **told})


def test_every_sampling_setting_is_part_of_the_key() -> None:
    assert OTHER_PARAMS.keys() == {f.name for f in fields(SamplingParams)}
    params = SamplingParams(seed=7)
    keys = {key_of(replace(params, **{name: value})) for name, value in OTHER_PARAMS.items()}
    assert len(keys | {key_of(params)}) == len(OTHER_PARAMS) + 1


def test_a_seed_is_no_part_where_there_is_no_chance() -> None:
    greedy = SamplingParams(temperature=0.0)
    assert key_of(greedy) == key_of(greedy) == key_of(replace(greedy, seed=7))


OTHER_INPUTS: dict[str, Any] = {
    "prompt_token_ids": [1, 3],
    "params": SamplingParams(seed=8),
    "eos_token_ids": frozenset({9}),
    "choice_index": 1,
    "max_total_tokens": 20,
    "cache_salt": "salt",
    "wants_provenance": True,
}


def test_every_field_of_a_request_is_part_of_the_key_or_known_not_to_matter() -> None:
    names = {f.name for f in fields(Request)}
    assert names == OTHER_INPUTS.keys() | UNKEYED_OF_REQUESTS
    base = {"request_id": "r", "prompt_token_ids": [1, 2], "params": SamplingParams(seed=7)}
    keys = {
        answer_key([[Request(**{**base, **change})]], model="m", tenant="t")
        for change in ({}, *({name: value} for name, value in OTHER_INPUTS.items()))
    }
    assert len(keys) == len(OTHER_INPUTS) + 1


def test_model_tenant_texts_and_number_of_prompts_are_part_of_the_key() -> None:
    params = SamplingParams(seed=7)
    request = make_requests([1, 2], params, request_id="r", info=INFO)
    keys = {
        key_of(params),
        key_of(params, model="other"),
        key_of(params, tenant="other"),
        key_of(params, shown_ids=frozenset({3})),
        answer_key([request, request], model="m", tenant="t"),
        answer_key([[*request, *request]], model="m", tenant="t"),
    }
    assert len(keys) == 6


def test_every_field_of_a_delta_is_kept_but_ids_times_and_errors() -> None:
    kept = {*KeptDelta.__struct_fields__} - {"place"}
    names = {f.name for f in fields(RequestDelta)}
    assert names - kept == {"request_id", "scheduled_time", "error"}
    assert kept <= names


def test_another_checkpoint_version_or_setting_is_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"abc")
    folder = ModelConfig(model=str(tmp_path))

    def identity(model: ModelConfig = folder, fingerprint: str = "fp", **told: Any) -> str:
        info = replace(INFO, **told)
        return ModelIdentity(model, fingerprint).of(info)

    first = identity()
    assert first == identity()
    found = [
        first,
        identity(ModelConfig(model="not/there")),
        identity(ModelConfig(model="shape:no such thing")),
        identity(fingerprint="fp2"),
        identity(model_name="other"),
        identity(attention_backends={"target": "triton"}),
    ]
    weights.write_bytes(b"abcd")
    found.append(identity())
    weights.write_bytes(b"abce")
    found.append(identity())
    monkeypatch.setattr("server.response_cache.model_identity.__version__", "99")
    found.append(identity())
    # Neither a name that the hub does not have here nor one that it cannot have is an error.
    assert found[1] == found[2]
    assert len(set(found)) == len(found) - 1


def test_a_model_is_looked_at_again_when_the_engine_was_started_anew(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"abc")
    identity = ModelIdentity(ModelConfig(model=str(tmp_path)), "fp")
    before, after = INFO, replace(INFO)
    first = identity.of(before)
    weights.write_bytes(b"abcd")
    assert identity.of(before) == first
    assert identity.of(after) != first


def test_an_engine_s_setting_is_part_of_the_key() -> None:
    async def scenario() -> None:
        found = set()
        for length in (64, 65):
            settings = EngineConfig(model=ModelConfig(max_model_len=length))
            async with serving(config=CONFIG, engine_config=settings) as api:
                info: ModelInfo = api.engine.info
                found.add(ModelIdentity(settings.model, api.served.fingerprint).of(info))
        assert len(found) == 2

    run(scenario)
