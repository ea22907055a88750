"""The shape that a body asks its answer to have, under any of the wire's names for it.

What a schema, a pattern or a grammar means is `server.structured_outputs`' to know.
"""

from __future__ import annotations

import json
import re
from typing import Any

from engine.errors import InvalidRequestError
from engine.structured_output import StructuredOutput
from server.protocol.sampling import ResponseFormat, SamplingFields, StructuredOutputsFields
from server.structured_outputs import (
    choice_output,
    grammar_output,
    json_object_output,
    json_schema_output,
    regex_output,
)

# Escapes stay as they are.
_IN_REGEX = re.compile(r"\\.|/|\n", re.DOTALL)
_ESCAPED = {"/": "\\/", "\n": "\\n"}
_KINDS = ("json", "regex", "choice", "grammar", "json_object")


def answer_shape(body: SamplingFields) -> StructuredOutput | None:
    """Read the shape of the answer; None = any.

    Raises:
        InvalidRequestError: several shapes at once, or one that cannot be held.
    """
    asked: dict[str, StructuredOutput] = {}
    if body.response_format is not None and body.response_format.type != "text":
        asked["response_format"] = response_shape(body.response_format)
    if body.structured_outputs is not None:
        asked["structured_outputs"] = _structured_shape(body.structured_outputs)
    asked |= _guided_shapes(body)
    if len(asked) > 1:
        raise _invalid(list(asked)[1], f"an answer has one shape, but {', '.join(asked)} are given")
    return next(iter(asked.values()), None)


def response_shape(wanted: ResponseFormat) -> StructuredOutput:
    """Read OpenAI's `response_format`, of a type that is not `text`.

    Raises:
        InvalidRequestError: a schema is missing, out of place, or cannot be held.
    """
    named = wanted.json_schema
    if wanted.type == "json_object":
        if named is not None:
            raise _invalid("response_format.json_schema", "its type is json_schema")
        return json_object_output()
    if named is None:
        raise _invalid("response_format.json_schema", "the type json_schema needs it")
    if named.json_schema is None:
        return json_object_output()
    return json_schema_output(named.json_schema, param="response_format.json_schema.schema")


def either(first: StructuredOutput, second: StructuredOutput) -> StructuredOutput:
    """Give the shape of answers that have one of two shapes.

    Raises:
        InvalidRequestError: one of them does not hold from the first token on.
    """
    rules = f"start: first | second\nfirst: {_rule(first)}\nsecond: {_rule(second)}\n"
    return StructuredOutput(kind="lark", text=rules)


def _rule(shape: StructuredOutput) -> str:
    """Write a shape as the body of a rule of a Lark grammar."""
    if shape.free is not None:
        raise _invalid("response_format", "with this model's way of thinking, it excludes tools")
    if shape.kind == "json_schema":
        return f"%json {shape.text}"
    if shape.kind == "lark":
        return f"%lark {{\n{shape.text}\n}}"
    if shape.kind == "choice":
        return " | ".join(json.dumps(text, ensure_ascii=False) for text in json.loads(shape.text))
    return "/" + _IN_REGEX.sub(lambda found: _ESCAPED.get(found[0], found[0]), shape.text) + "/"


def _structured_shape(wanted: StructuredOutputsFields) -> StructuredOutput:
    given = {
        "json": wanted.json_schema,
        "regex": wanted.regex,
        "choice": wanted.choice,
        "grammar": wanted.grammar,
        "json_object": wanted.json_object or None,
    }
    kinds = [kind for kind, value in given.items() if value is not None]
    if len(kinds) != 1:
        listed = ", ".join(kinds) or "none"
        raise _invalid(
            "structured_outputs", f"exactly one of {', '.join(_KINDS)} is needed, not {listed}"
        )
    (kind,) = kinds
    spacing = (wanted.whitespace_pattern, wanted.disable_any_whitespace)
    if kind not in ("json", "json_object") and any(spacing):
        name = "whitespace_pattern" if spacing[0] else "disable_any_whitespace"
        raise _invalid(f"structured_outputs.{name}", "only JSON has space between its parts")
    return _shape(
        kind,
        given[kind],
        f"structured_outputs.{kind}",
        compact=bool(wanted.disable_any_whitespace),
        whitespace_pattern=wanted.whitespace_pattern,
    )


def _guided_shapes(body: SamplingFields) -> dict[str, StructuredOutput]:
    """Read the older names of the field's servers, each a shape of its own."""
    given = {
        "guided_json": body.guided_json,
        "guided_regex": body.guided_regex,
        "guided_choice": body.guided_choice,
        "guided_grammar": body.guided_grammar,
    }
    pattern = body.guided_whitespace_pattern
    if pattern is not None and body.guided_json is None:
        raise _invalid("guided_whitespace_pattern", "it needs guided_json")
    return {
        name: _shape(name.removeprefix("guided_"), value, name, whitespace_pattern=pattern)
        for name, value in given.items()
        if value is not None
    }


def _shape(
    kind: str,
    value: Any,
    param: str,
    *,
    compact: bool = False,
    whitespace_pattern: str | None = None,
) -> StructuredOutput:
    if kind == "regex":
        return regex_output(value, param)
    if kind == "choice":
        return choice_output(value, param)
    if kind == "grammar":
        return grammar_output(value, param)
    schema = {"type": "object"} if kind == "json_object" else _schema(value, param)
    return json_schema_output(
        schema, param=param, compact=compact, whitespace_pattern=whitespace_pattern
    )


def _schema(value: dict[str, Any] | str, param: str) -> dict[str, Any] | bool:
    """Give a schema that may have come as JSON text."""
    if isinstance(value, dict):
        return value
    try:
        schema = json.loads(value)
    except ValueError as error:
        raise _invalid(param, f"it is no JSON ({error})") from error
    except RecursionError as error:
        raise _invalid(param, "the schema is nested too deeply") from error
    if not isinstance(schema, (dict, bool)):
        raise _invalid(param, f"{value[:40]!r} is no JSON schema")
    return schema


def _invalid(param: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{param}: {message}.", param=param, code="invalid_value")
