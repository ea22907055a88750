"""Messages: from a body to the assistant turn that it asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engine.errors import ContextLengthExceededError, InvalidRequestError
from engine.sampling_params import SamplingParams
from engine.structured_output import StructuredOutput
from server.answer_shape import answer_shape
from server.chat_template import template_text
from server.messages_answer import MessageAnswer
from server.messages_prompt import chat_messages, is_continued, tool_choice_of, tools_of
from server.messages_thinking import thinking_options
from server.protocol.messages import MessagesRequest, PromptFields
from server.protocol.messages_answer import TokenCount
from server.protocol.sampling import SamplingFields
from server.reasoning import choose_reasoning
from server.sampling import sampling_params
from server.served import Served
from server.structured_outputs import json_schema_output
from server.turn import TurnRequest, render_turn, start_turn

_OWN_FIELDS = {"model", "max_tokens", "metadata", "stream"}
_SHARED_FIELDS = (SamplingFields.model_fields.keys() & MessagesRequest.model_fields) - _OWN_FIELDS


def start_message(served: Served, body: MessagesRequest) -> MessageAnswer:
    """Check a message and give it to the engine.

    A limit that is beyond the context means as many tokens as fit.

    Raises:
        InvalidRequestError: it cannot be served as asked.
        EngineError: the engine is loading, or gone.
    """
    model = served.check_model(body.model)
    served.check_ready()
    fields = _sampling_fields(body)
    is_bounded = body.max_tokens < served.engine.info.max_total_tokens
    params = sampling_params(
        fields,
        served.tokenizer,
        max_tokens=body.max_tokens if is_bounded else None,
        logprobs=None,
    )
    request = replace(
        _turn_request(served, body, params),
        response_format=_response_format(body, fields),
        priority=body.priority or 0,
        cache_salt=body.cache_salt or "",
        timeout_s=body.timeout,
    )
    try:
        turn = start_turn(served, request)
    except ContextLengthExceededError as error:
        if error.param != "max_tokens":
            raise
        turn = start_turn(served, replace(request, params=replace(params, max_tokens=None)))
    return MessageAnswer(turn, body, model)


def count_tokens(served: Served, body: PromptFields) -> TokenCount:
    """Count the tokens of the prompt that a body becomes.

    Raises:
        InvalidRequestError: it cannot be served as asked.
        EngineError: the engine is loading, or gone.
    """
    served.check_model(body.model)
    served.check_ready()
    prompt = render_turn(served, _turn_request(served, body, SamplingParams()))
    return {"input_tokens": len(prompt.token_ids)}


def _turn_request(served: Served, body: PromptFields, params: SamplingParams) -> TurnRequest:
    messages = chat_messages(body)
    continues = is_continued(messages)
    choice = body.tool_choice
    return TurnRequest(
        kind="msg",
        messages=messages,
        params=params,
        tools=tools_of(body),
        tool_choice=tool_choice_of(body),
        parallel_tool_calls=choice is None or not choice.disable_parallel_tool_use,
        template_options=_template_options(served, body),
        add_generation_prompt=not continues,
        continue_final_message=continues,
    )


def _template_options(served: Served, body: PromptFields) -> dict[str, Any]:
    template = template_text(served.tokenizer, has_tools=bool(body.tools))
    can_think = choose_reasoning(served.reasoning_parser, template) is not None
    options = thinking_options(body, template, can_think=can_think)
    return options | (body.chat_template_kwargs or {})


def _sampling_fields(body: MessagesRequest) -> SamplingFields:
    """Give the fields that mean the same on every wire."""
    shared = {name: getattr(body, name) for name in _SHARED_FIELDS}
    return SamplingFields.model_construct(**shared, stop=body.stop_sequences)


def _response_format(body: MessagesRequest, fields: SamplingFields) -> StructuredOutput | None:
    formats = {
        "output_config.format": None if body.output_config is None else body.output_config.format,
        "output_format": body.output_format,
    }
    given = {name: wanted for name, wanted in formats.items() if wanted is not None}
    shape = answer_shape(fields)
    names = [*given, *(["structured_outputs"] if shape is not None else [])]
    if len(names) > 1:
        raise _invalid(names[1], f"an answer has one shape, but {' and '.join(names)} are given")
    for name, wanted in given.items():
        return json_schema_output(wanted.json_schema, param=f"{name}.schema")
    return shape


def _invalid(param: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{param}: {message}.", param=param, code="invalid_value")
