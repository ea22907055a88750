"""The OpenAPI page: what every endpoint takes, gives and refuses, in one table.

Paths, parameters and descriptions are the routes' own. Bodies are read by `server.bodies`, so this
table says which model each endpoint reads and which shapes it answers with.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from engine.version import __version__
from server.errors import ErrorBody
from server.protocol.chat import ChatChunk, ChatCompletion, ChatCompletionRequest, ChatLabels
from server.protocol.completions import Completion, CompletionRequest
from server.protocol.messages import MessagesRequest
from server.protocol.messages import PromptFields as CountedMessages
from server.protocol.messages_answer import (
    AnsweredMessage,
    MessageEvent,
    MessagesErrorBody,
    TokenCount,
)
from server.protocol.models import ModelCard, ModelList
from server.protocol.pages import Deleted, Page
from server.protocol.responses import InputTokensRequest, ResponsesRequest
from server.protocol.responses_answer import InputTokenCount, ResponseAnswer, ResponseEvent
from server.protocol.server_info import Health, ServerInfo, Version
from server.protocol.statistics import Statistics, StatisticsHistory
from server.protocol.tokenize import (
    DetokenizeAnswer,
    DetokenizeRequest,
    TokenizeAnswer,
    TokenizeRequest,
)
from server.protocol.wire import WireModel

_JSON = "application/json"
_EVENTS = "text/event-stream"
_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
# A server without keys takes calls without one.
_SECURITY: list[dict[str, list[str]]] = [{}, {"bearer": []}, {"key": []}]
_REF = "#/components/schemas/{model}"


@dataclass(frozen=True, slots=True)
class Operation:
    """What an endpoint takes and gives.

    Attributes:
        answer: the shape of a whole answer; None = plain text, or events alone.
        body: what is read.
        event: the shape of each event, where the answer may be a stream.
        makes: the parameter under which others find what this makes.
        finds: whether it looks something up that may not be there.
        unavailable: the shape of a 503; None = it works while the engine does not.
        error: the shape of errors.
        example: a body; the model's name is added.
        needs_key: whether callers need a key, where there are keys, and are counted.
    """

    answer: Any
    body: type[WireModel] | None = None
    event: Any = None
    makes: str | None = None
    finds: bool = False
    unavailable: Any = None
    error: Any = ErrorBody
    example: Mapping[str, Any] | None = None
    needs_key: bool = True

    @property
    def makes_answers(self) -> bool:
        """Whether the engine works for it, until its time is over."""
        return self.body is not None and self.event is not None


_Example = Mapping[str, Any]


def _generates(
    answer: Any,
    body: type[WireModel],
    event: Any = None,
    *,
    example: _Example,
    makes: str | None = None,
) -> Operation:
    """Describe an endpoint that needs the engine, under a model's name."""
    return Operation(answer, body, event, makes, finds=True, unavailable=ErrorBody, example=example)


def _for_agents(
    answer: Any, body: type[WireModel], event: Any = None, *, example: _Example
) -> Operation:
    """Describe an endpoint whose errors have Anthropic's shape."""
    shape = MessagesErrorBody
    return Operation(
        answer, body, event, finds=True, unavailable=shape, error=shape, example=example
    )


_CHATS = "/v1/chat/completions"
_CHAT = _CHATS + "/{completion_id}"
_RESPONSES = "/v1/responses"
_RESPONSE = _RESPONSES + "/{response_id}"
_GREETING = {"messages": [{"role": "user", "content": "Hello!"}]}

OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("post", _CHATS): _generates(
        ChatCompletion,
        ChatCompletionRequest,
        ChatChunk,
        example={**_GREETING, "max_tokens": 20, "temperature": 0.7, "store": True},
        makes="completion_id",
    ),
    ("get", _CHATS): Operation(Page),
    ("get", _CHAT): Operation(ChatCompletion, finds=True),
    ("post", _CHAT): Operation(
        ChatCompletion, ChatLabels, finds=True, example={"metadata": {"project": "tales"}}
    ),
    ("delete", _CHAT): Operation(Deleted, finds=True),
    ("get", _CHAT + "/messages"): Operation(Page, finds=True),
    ("post", "/v1/completions"): _generates(
        Completion,
        CompletionRequest,
        Completion,
        example={"prompt": "Once upon a time", "max_tokens": 20, "logprobs": 1},
    ),
    ("post", _RESPONSES): _generates(
        ResponseAnswer,
        ResponsesRequest,
        ResponseEvent,
        example={"input": "Hello!", "max_output_tokens": 20},
        makes="response_id",
    ),
    ("post", _RESPONSES + "/input_tokens"): _generates(
        InputTokenCount, InputTokensRequest, example={"input": "Hello!"}
    ),
    ("get", _RESPONSE): Operation(ResponseAnswer, event=ResponseEvent, finds=True),
    ("delete", _RESPONSE): Operation(Deleted, finds=True),
    ("post", _RESPONSE + "/cancel"): Operation(ResponseAnswer, finds=True),
    ("get", _RESPONSE + "/input_items"): Operation(Page, finds=True),
    ("post", "/v1/messages"): _for_agents(
        AnsweredMessage, MessagesRequest, MessageEvent, example={**_GREETING, "max_tokens": 20}
    ),
    ("post", "/v1/messages/count_tokens"): _for_agents(
        TokenCount, CountedMessages, example=_GREETING
    ),
    ("post", "/tokenize"): _generates(
        TokenizeAnswer, TokenizeRequest, example={"prompt": "Once upon a time"}
    ),
    ("post", "/detokenize"): _generates(
        DetokenizeAnswer, DetokenizeRequest, example={"tokens": [1, 2, 3]}
    ),
    ("get", "/v1/models"): Operation(ModelList),
    ("get", "/v1/models/{name}"): Operation(ModelCard, finds=True),
    ("get", "/health"): Operation(Health, unavailable=Health, needs_key=False),
    ("get", "/ready"): Operation(Health, unavailable=Health, needs_key=False),
    ("get", "/metrics"): Operation(None),
    ("get", "/statistics"): Operation(None, event=Statistics | StatisticsHistory),
    ("get", "/version"): Operation(Version),
    ("get", "/server_info"): Operation(ServerInfo),
}


def install_openapi(app: FastAPI) -> None:
    """Let the app describe itself by the table."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = openapi_page(app)
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]


def openapi_page(app: FastAPI) -> dict[str, Any]:
    """Describe every endpoint of an app."""
    page = get_openapi(
        title=app.title, version=__version__, description=app.description, routes=app.routes
    )
    schemas, definitions = _schemas()
    for path, methods in page["paths"].items():
        for method, described in methods.items():
            has_parameters = bool(described.get("parameters"))
            described.pop("requestBody", None)
            described |= _describe(OPERATIONS[method, path], schemas, has_parameters)
            described["security"] = _SECURITY if OPERATIONS[method, path].needs_key else []
            _show_example(app, described, OPERATIONS[method, path])
            _show_links(page["paths"], described, OPERATIONS[method, path])
    page["components"] = {"schemas": definitions, "securitySchemes": _SECURITY_SCHEMES}
    return page


def _show_example(app: FastAPI, described: dict[str, Any], operation: Operation) -> None:
    """Give a body that this server answers."""
    if operation.body is None:
        return
    example = dict(operation.example or {})
    if "model" in operation.body.model_fields:
        example["model"] = app.state.served.name
    described["requestBody"]["content"][_JSON]["example"] = example


_Key = tuple[Hashable, JsonSchemaMode]


def _schemas() -> tuple[dict[_Key, Any], dict[str, Any]]:
    """Give the schema of every shape of the table, and those that they refer to by name."""
    adapters: dict[_Key, TypeAdapter[Any]] = {}
    for operation in OPERATIONS.values():
        if operation.body is not None:
            adapters[operation.body, "validation"] = TypeAdapter(operation.body)
        for shape in (operation.answer, operation.event, operation.unavailable, operation.error):
            if shape is not None:
                adapters[shape, "serialization"] = TypeAdapter(shape)
    schemas, described = TypeAdapter.json_schemas(
        [(shape, mode, adapter) for (shape, mode), adapter in adapters.items()], ref_template=_REF
    )
    return schemas, described["$defs"]


def _show_links(paths: Mapping[str, Any], described: dict[str, Any], operation: Operation) -> None:
    """Say which endpoints find again what this one makes."""
    if operation.makes is None:
        return
    name = operation.makes
    described["responses"]["200"]["links"] = {
        found["operationId"]: {
            "operationId": found["operationId"],
            "parameters": {name: "$response.body#/id"},
        }
        for path, methods in paths.items()
        for found in methods.values()
        if f"{{{name}}}" in path
    }


def _describe(
    operation: Operation, schemas: Mapping[_Key, Any], has_parameters: bool
) -> dict[str, Any]:
    """Give the body and the answers of an endpoint."""

    def shown(shape: Any) -> dict[str, Any]:
        return {"schema": schemas[shape, "serialization"]}

    answers: dict[str, Any] = {_JSON: shown(operation.answer)} if operation.answer else {}
    if operation.answer is None and operation.event is None:
        answers["text/plain"] = {"schema": {"type": "string"}}
    if operation.event is not None:
        shapes = [shown(shape)["schema"] for shape in (operation.event, operation.error)]
        answers[_EVENTS] = {"itemSchema": _event_schema(shapes)}
    responses = {"200": {"description": "The answer.", "content": answers}}
    for status in _failures(operation, has_parameters):
        is_unavailable = status == HTTPStatus.SERVICE_UNAVAILABLE
        shape = operation.unavailable if is_unavailable else operation.error
        responses[str(int(status))] = {
            "description": f"{status.phrase}.",
            "content": {_JSON: shown(shape)},
        }
    if operation.body is None:
        return {"responses": responses}
    body = {"schema": schemas[operation.body, "validation"]}
    return {"requestBody": {"required": True, "content": {_JSON: body}}, "responses": responses}


def _event_schema(shapes: list[dict[str, Any]]) -> dict[str, Any]:
    """Give the schema of a server-sent event, whose data is JSON of one of these shapes."""
    data = {"contentMediaType": _JSON, "contentSchema": {"anyOf": shapes}}
    return {
        "type": "object",
        "properties": {
            "event": {"type": "string", "description": "Its type, where events have names."},
            "data": {"type": "string", "anyOf": [data, {"const": "[DONE]"}]},
        },
        "required": ["data"],
    }


def _failures(operation: Operation, has_parameters: bool) -> list[HTTPStatus]:
    # Who calls the server by a name that is not its own is refused everywhere.
    failures = [HTTPStatus.FORBIDDEN]
    if operation.needs_key:
        failures += [HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS]
    if operation.body is not None:
        failures += [
            HTTPStatus.REQUEST_TIMEOUT,
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        ]
    if operation.makes_answers:
        failures.append(HTTPStatus.GATEWAY_TIMEOUT)
    if operation.body is not None or has_parameters:
        failures.append(HTTPStatus.BAD_REQUEST)
    if operation.finds:
        failures.append(HTTPStatus.NOT_FOUND)
    if operation.unavailable is not None:
        failures.append(HTTPStatus.SERVICE_UNAVAILABLE)
    return sorted([*failures, HTTPStatus.INTERNAL_SERVER_ERROR])
