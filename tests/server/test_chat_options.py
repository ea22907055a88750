"""Chat's options beside sampling: shapes, speculation, predictions, labels, the template's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from engine.request import Request
from engine.structured_output import StructuredOutput
from tests.doubles import FakeCore
from tests.server.harness import USER, error_of, events, run, saying, serving

PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
UNHELD = {"name": "thing", "schema": {"not": {}}}
NAMED = {"name": "thing", "schema": SCHEMA, "strict": True}


def asked(template: str | None = None, **fields: Any) -> Request:
    """Give the request that the engine gets for a chat."""
    seen: list[Request] = []

    async def scenario() -> None:
        core = FakeCore(answer=saying("x"))
        take: Callable[[Request], None] = core.add_request

        def add_request(request: Request) -> None:
            seen.append(request)
            take(request)

        core.add_request = add_request  # type: ignore[method-assign]
        options = {} if template is None else {"template": template}
        async with serving(core=core, **options) as api:
            response = await api.chat(**fields)
            assert response.status_code == 200, response.text

    run(scenario)
    return seen[0]


def shape(**fields: Any) -> StructuredOutput | None:
    return asked(**fields).params.structured_output


def refusal(**fields: Any) -> dict[str, Any]:
    """Give the error of a chat that is refused."""
    errors: list[dict[str, Any]] = []

    async def scenario() -> None:
        async with serving() as api:
            errors.append(error_of(await api.chat(stream=True, **fields)))

    run(scenario)
    return errors[0]


def schema_of(held: StructuredOutput | None) -> dict[str, Any]:
    assert held is not None
    assert held.kind == "json_schema"
    schema: dict[str, Any] = json.loads(held.text)
    return {key: value for key, value in schema.items() if key != "x-guidance"}


def test_text_is_no_shape() -> None:
    assert shape(response_format={"type": "text"}) is None
    assert shape() is None


@pytest.mark.parametrize(
    ("fields", "schema"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": NAMED}}, SCHEMA),
        ({"response_format": {"type": "json_object"}}, {"type": "object"}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "any"}}},
            {"type": "object"},
        ),
        ({"structured_outputs": {"json": SCHEMA}}, SCHEMA),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, SCHEMA),
        ({"structured_outputs": {"json_object": True}}, {"type": "object"}),
        ({"structured_outputs": {"json": SCHEMA, "json_object": False}}, SCHEMA),
        ({"guided_json": SCHEMA}, SCHEMA),
        ({"guided_json": json.dumps(SCHEMA)}, SCHEMA),
    ],
)
def test_json_can_be_asked_for(fields: dict[str, Any], schema: dict[str, Any]) -> None:
    assert schema_of(shape(**fields)) == schema


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("regex", "[0-9]+", "[0-9]+"),
        ("choice", ["yes", "no"], '["yes", "no"]'),
        ("grammar", 'start: "x"', 'start: "x"'),
    ],
)
def test_other_shapes_can_be_asked_for(kind: str, value: Any, text: str) -> None:
    held = shape(structured_outputs={kind: value})
    assert held == shape(**{f"guided_{kind}": value})
    assert held == StructuredOutput(kind="lark" if kind == "grammar" else kind, text=text)  # type: ignore[arg-type]


def test_space_between_the_parts_of_json_can_be_chosen() -> None:
    compact = shape(structured_outputs={"json": SCHEMA, "disable_any_whitespace": True})
    spaced = shape(structured_outputs={"json": SCHEMA, "whitespace_pattern": " ?"})
    plain = shape(structured_outputs={"json": SCHEMA})
    assert len({compact, spaced, plain}) == 3
    assert spaced == shape(guided_json=SCHEMA, guided_whitespace_pattern=" ?")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_object", "json_schema": NAMED}},
            "response_format.json_schema",
        ),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": UNHELD,
                }
            },
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": "x"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json"),
        ({"structured_outputs": {"jsn": {}}}, "structured_outputs.jsn"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        (
            {"structured_outputs": {"regex": "a", "whitespace_pattern": " "}},
            "structured_outputs.whitespace_pattern",
        ),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
        ({"guided_decoding_backend": "x"}, "guided_decoding_backend"),
        (
            {"response_format": {"type": "json_object"}, "guided_regex": "a"},
            "guided_regex",
        ),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
    ],
)
def test_shapes_that_cannot_be_held_are_refused(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields)["param"] == param


def test_speculation_is_a_matter_of_the_request() -> None:
    assert asked().params.max_draft_tokens is None
    assert asked(speculation={"enabled": True}).params.max_draft_tokens is None
    assert asked(speculation={"enabled": False}).params.max_draft_tokens == 0
    assert asked(speculation={"max_draft_tokens": 3}).params.max_draft_tokens == 3
    assert asked(speculation={"enabled": False, "max_draft_tokens": 3}).params.max_draft_tokens == 0


@pytest.mark.parametrize(
    ("speculation", "param"),
    [
        ({"enabled": True, "max_draft_tokens": 0}, "speculation.max_draft_tokens"),
        ({"max_draft_tokens": 33}, "speculation"),
        ({"max_draft_tokens": -1}, "speculation"),
        ({"drafts": 1}, "speculation.drafts"),
    ],
)
def test_speculation_out_of_bounds_is_refused(speculation: Any, param: str) -> None:
    assert refusal(speculation=speculation)["param"] == param


def test_how_speculation_went_is_told_when_asked_for() -> None:
    async def scenario() -> None:
        async with serving(saying("hello")) as api:
            report: dict[str, Any] = {"speculation": {"report": True}, "n": 2}
            told = (await api.chat(**report)).json()["metrics"]["speculative_decoding"]
            assert [choice["index"] for choice in told["choices"]] == [0, 1]
            assert [choice["num_target_passes"] for choice in told["choices"]] == [3, 3]
            assert told["num_target_passes"] == 6
            for part, num_passes in ((told, 6), *((choice, 3) for choice in told["choices"])):
                assert part["draft_ms"] == pytest.approx(1.0 * num_passes)
                assert part["verify_ms"] == pytest.approx(2.0 * num_passes)
                assert part["overhead_ms"] == pytest.approx(0.5 * num_passes)
                assert part["estimated_speedup"] == 1.5
                drafts = part["by_drafter"]["draft_model"]
                assert drafts["num_drafts"] == part["num_drafts"] == num_passes
                wasted = drafts["num_draft_tokens"] - drafts["num_accepted_tokens"]
                assert drafts["num_wasted_tokens"] == part["num_wasted_tokens"] == wasted
            last = events(await api.chat(stream=True, **report))[-1]
            assert last["choices"][0]["finish_reason"] == "stop"
            assert last["metrics"]["speculative_decoding"] == told
            options = {"include_usage": True}
            last = events(await api.chat(stream=True, stream_options=options, **report))[-1]
            assert last["metrics"]["speculative_decoding"] == told
            assert "metrics" not in (await api.chat(speculation={"report": False})).json()

    run(scenario)


@pytest.mark.parametrize("content", ["ab", PARTS])
def test_a_prediction_is_drafted_from_and_counted(content: Any) -> None:
    prediction = {"type": "content", "content": content}
    assert asked(prediction=prediction).params.predicted_token_ids == (64, 65)

    async def scenario() -> None:
        async with serving(saying("hello")) as api:
            usage = (await api.chat(prediction=prediction)).json()["usage"]
            details = usage["completion_tokens_details"]
            assert details["accepted_prediction_tokens"] == 3
            assert details["rejected_prediction_tokens"] == 0

    run(scenario)


@pytest.mark.parametrize("prediction", [{"type": "file"}, {"type": "content"}, "ab"])
def test_other_predictions_are_refused(prediction: Any) -> None:
    assert refusal(prediction=prediction)["param"] == "prediction"


def test_what_asks_for_nothing_is_accepted() -> None:
    labels: dict[str, Any] = {
        "user": "me",
        "metadata": {"a": "b"},
        "safety_identifier": "me",
        "prompt_cache_key": "mine",
        "store": False,
        "modalities": ["text"],
        "verbosity": "medium",
        "stream_options": {"include_obfuscation": False},
        "prompt_cache_retention": "in_memory",
    }
    assert asked(seed=1, **labels).params == asked(seed=1).params


@pytest.mark.parametrize("tier", ["auto", "default", "flex", "scale", "priority"])
def test_every_tier_is_served_the_same(tier: str) -> None:
    async def scenario() -> None:
        async with serving(saying("a")) as api:
            assert (await api.chat(service_tier=tier)).json()["service_tier"] == "default"
            stream = events(await api.chat(service_tier=tier, stream=True))
            assert {event["service_tier"] for event in stream} == {"default"}

    run(scenario)


def test_salts_and_priorities_reach_the_engine() -> None:
    request = asked(cache_salt="mine", priority=3)
    assert (request.cache_salt, request.priority) == ("mine", 3)
    assert refusal(cache_salt="")["param"] == "cache_salt"


def test_obfuscation_is_refused() -> None:
    error = refusal(stream_options={"include_obfuscation": True})
    assert error["param"] == "stream_options.include_obfuscation"


def test_a_reasoning_effort_reaches_a_template_that_knows_it() -> None:
    request = asked("{{ reasoning_effort }}", reasoning_effort="low")
    assert request.num_prompt_tokens == len("low")
    switch = "{{ 'on' if enable_thinking is not defined else 'off' }}"
    assert asked(switch, reasoning_effort="none").num_prompt_tokens == len("off")
    assert refusal(reasoning_effort="low")["param"] == "reasoning_effort"
    assert refusal(reasoning_effort="enormous")["param"] == "reasoning_effort"


def test_the_prompt_may_end_inside_the_last_message() -> None:
    started = [*USER, {"role": "assistant", "content": "It is"}]
    request = asked(messages=started, continue_final_message=True)
    assert request.num_prompt_tokens == len("<user>hi<assistant>It is")
    both = {"continue_final_message": True, "add_generation_prompt": True}
    assert refusal(messages=started, **both)["param"] == "continue_final_message"
    request = asked(add_generation_prompt=False)
    assert request.num_prompt_tokens == len("<user>hi")


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user"}, "messages[1].content"),
        ({"role": "tool", "content": "x"}, "messages[1].tool_call_id"),
        ({"role": "user", "content": "x", "tool_call_id": "1"}, "messages[1].tool_call_id"),
        ({"role": "user", "content": "x", "refusal": "no"}, "messages[1].refusal"),
        (
            {"role": "user", "content": [{"type": "refusal", "refusal": "no"}]},
            "messages[1].content[0].type",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text"),
        ({"role": "function", "content": "x"}, "messages"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "messages.function_call"),
        ({"role": "assistant", "audio": {"id": "x"}}, "messages.audio"),
    ],
)
def test_messages_that_make_no_sense_are_refused(message: dict[str, Any], param: str) -> None:
    assert refusal(messages=[*USER, message])["param"] == param


def test_refusals_of_an_assistant_are_its_words() -> None:
    part = {"type": "refusal", "refusal": "no"}
    for message in (
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "assistant", "content": [part]},
    ):
        request = asked(messages=[*USER, message])
        assert request.num_prompt_tokens == len("<user>hi<assistant>no<assistant>")


def test_results_carry_the_name_of_what_was_called() -> None:
    template = "{# tool_calls #}{% for m in messages %}{{ m.name }}{% endfor %}"
    call = {"id": "7", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    asking = {"role": "assistant", "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "7", "content": "noon"}
    assert asked(template, messages=[asking, result]).num_prompt_tokens == len("clock")


def test_log_probabilities_of_the_prompt_are_told_once() -> None:
    async def scenario() -> None:
        async with serving(saying("a")) as api:
            body = (await api.chat(prompt_logprobs=1, n=2)).json()
            first, *others = body["prompt_logprobs"]
            assert first is None
            assert len(others) == body["usage"]["prompt_tokens"] - 1
            own = next(iter(others[0].values()))
            assert own == {"logprob": -0.5, "rank": 1, "decoded_token": "u"}
            assert "prompt_logprobs" not in (await api.chat()).json()

    run(scenario)
    assert refusal(prompt_logprobs=1)["param"] == "prompt_logprobs"
    assert refusal(prompt_logprobs=21)["param"] == "prompt_logprobs"
