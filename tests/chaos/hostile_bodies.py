"""Bodies that nobody should send: mutated, nested, huge, of wrong types, or no JSON at all."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.chaos.asks import MODEL, random_text

_PATHS: dict[str, dict[str, Any]] = {
    "/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/completions": {"prompt": "once upon"},
    "/responses": {"input": "hi"},
    "/messages": {"messages": [{"role": "user", "content": "hi"}]},
}
_ROOT_PATHS = ("/tokenize", "/detokenize")
_NUMBERS = (
    *(0, -1, -0.0, 1e308, -1e308, 1e-308, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, -(2**63)),
    *(10**40, 0.1, 1.5, 10**6),
)
_TEXTS = (
    *("", "\x00", "a\x00b", "\ud800", "\udfff\ud800", "﷽" * 50, "a" * 5000, "\u202e", "\ufeff"),
    *("🏴\U000e0067" * 20, "<|im_end|>", "{{ 7*7 }}", "../../etc/passwd", "%s%n", "null", "NaN"),
)
_REGEXES = (
    *("(a+)+$", "(a|a)*b", "(a*)*b", "((a{1,50}){1,50}){1,50}", "(x+x+)+y", "a{100000}"),
    *("(.*)(.*)(.*)(.*)(.*)x", "[a-z]{1,4000}[0-9]{1,4000}", "(?=a)b", "(?<!a)b", r"(a)\1"),
    *("(" * 500 + ")" * 500, "[" * 100, "a**", "\\", "(?P<x", ".{0,30000}", "(a?){500}a{500}"),
    *("\\p{L}{1,1000}", "(\\w|\\d|\\s|.){200}", "[^a]{9999}", "(a{0,9}){0,9}{0,9}{0,9}", "\x00"),
)
_SHAPES: tuple[Any, ...] = (
    *({}, [], True, False, None, 7, "object", {"type": "nothing"}, {"$ref": "#"}),
    {"$ref": "#/definitions/a", "definitions": {"a": {"$ref": "#/definitions/a"}}},
    {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(2000)}},
    {"type": "string", "minLength": 10**9},
    {"type": "string", "maxLength": -1},
    {"type": "array", "minItems": 10**12, "items": {"type": "integer"}},
    {"type": "integer", "minimum": 10**400},
    {"enum": []},
    {"enum": ["x" * 60_000]},
    {"enum": list(range(5000))},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"not": {}},
    {"type": "object", "patternProperties": {"(a+)+$": {"type": "string"}}},
    {"type": "object", "required": ["missing"], "additionalProperties": False},
    {"$ref": "http://127.0.0.1:1/schema.json"},
    {"type": ["string", "null", "nothing"]},
    {"const": {"a": [None] * 300}},
    {"x-guidance": {"lazy": True}},
)
_GRAMMARS = (
    *("", "start:", 'start: "a" start', "start: start", "start: /(a+)+/ start | ", "::= ::= ::="),
    *('root ::= "a" root', "start: %json {}", 'start: "' + "x" * 3000 + '"', "%import common.X"),
    'start: a\na: b\nb: c\nc: a "x"',
)
_LARGE_BYTES = 10 * 10**6


@dataclass(frozen=True, slots=True)
class Hostile:
    """A hostile request.

    Attributes:
        kind: in what way.
        path: of a POST.
        body: its bytes.
    """

    kind: str
    path: str
    body: bytes


def make_hostile(rng: random.Random) -> Hostile:
    """Draw one."""
    kinds = list(_KINDS)
    kind = rng.choices(kinds, [_KINDS[name][0] for name in kinds])[0]
    path, body = _KINDS[kind][1](rng)
    return Hostile(kind, path, body if isinstance(body, bytes) else _written(body))


def _written(body: Any) -> bytes:
    return json.dumps(body).encode(errors="surrogatepass")


def _valid(rng: random.Random) -> tuple[str, dict[str, Any]]:
    if rng.random() < 0.06:
        path = rng.choice(_ROOT_PATHS)
        inner: dict[str, Any] = {"prompt": "abc"} if path == "/tokenize" else {"tokens": [5, 6]}
        return path, {"model": MODEL, **inner}
    path = rng.choice(list(_PATHS))
    limit = "max_output_tokens" if path == "/responses" else "max_tokens"
    body: dict[str, Any] = {"model": MODEL, limit: rng.randint(1, 8), "stream": rng.random() < 0.3}
    body |= copy.deepcopy(_PATHS[path])
    extras: dict[str, Any] = {"temperature": 0.5, "top_p": 0.9}
    if path in ("/chat/completions", "/completions"):
        extras |= {"seed": 3, "n": 2, "stop": ["x"], "logit_bias": {"5": 1.0}}
        extras |= {"presence_penalty": 0.1, "priority": 0, "min_tokens": 1}
    names = rng.sample(list(extras), rng.randint(0, len(extras)))
    return f"/v1{path}", body | {name: extras[name] for name in names}


def _hostile_value(rng: random.Random) -> Any:
    return rng.choice(
        [
            rng.choice(_NUMBERS),
            rng.choice(_TEXTS),
            rng.choice([None, True, False, [], {}, [[]], [None], {"": ""}, [{}] * 50]),
            [rng.choice(_NUMBERS) for _ in range(rng.choice((1, 3, 300)))],
            {rng.choice(_TEXTS)[:40]: rng.choice(_NUMBERS) for _ in range(3)},
        ]
    )


def _wrong_values(rng: random.Random) -> tuple[str, Any]:
    path, body = _valid(rng)
    for _ in range(rng.randint(1, 3)):
        place: Any = body
        while True:
            names = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not names:
                break
            name = rng.choice(names)
            inner = place[name]
            if isinstance(inner, dict | list) and inner and rng.random() < 0.7:
                place = inner
                continue
            if rng.random() < 0.15:
                del place[name]
            else:
                place[name] = _hostile_value(rng)
            break
    return path, body


def _strange_fields(rng: random.Random) -> tuple[str, Any]:
    path, body = _valid(rng)
    fields = (
        *("tools", "tool_choice", "response_format", "logprobs", "top_logprobs", "best_of", "echo"),
        *("suffix", "user", "metadata", "reasoning", "thinking", "system", "prediction", "timeout"),
        *("stop_token_ids", "allowed_token_ids", "bad_words", "cache_salt", "speculation", "store"),
        *("previous_response_id", "background", "text", "instructions", "prompt_logprobs", "extra"),
    )
    for name in rng.sample(fields, rng.randint(1, 3)):
        body[name] = _hostile_value(rng)
    return path, body


def _broken_bytes(rng: random.Random) -> tuple[str, bytes]:
    path, body = _valid(rng)
    content = bytearray(_written(body))
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(content))
        what = rng.randrange(4)
        if what == 0:
            content[place] = rng.randrange(256)
        elif what == 1:
            del content[place : place + rng.randint(1, 9)]
        elif what == 2:
            content[place:place] = rng.choice((b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"}", b'"'))
        else:
            content[place:place] = content[max(0, place - 20) : place]
        if not content:
            content += b"{"
    return path, bytes(content)


def _nested(rng: random.Random) -> tuple[str, bytes]:
    path, body = _valid(rng)
    depth = rng.choice((50, 99, 101, 199, 1000, 50_000))
    opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    deep = opening * depth + b"1" + closing * rng.choice((depth, depth, 0))
    field = rng.choice(("prompt", "messages", "metadata", "tools", "response_format", "input"))
    written = _written({**body, field: "@"})
    return path, written.replace(b'"@"', deep)


def _garbage(rng: random.Random) -> tuple[str, bytes]:
    path, _ = _valid(rng)
    return path, rng.randbytes(rng.choice((0, 1, 10, 1000, 20_000)))


def _shaped(rng: random.Random) -> tuple[str, Any]:
    path = "/v1/chat/completions"
    body: dict[str, Any] = {"model": MODEL, "max_tokens": rng.randint(1, 12)}
    body["messages"] = [{"role": "user", "content": random_text(rng, 3)}]
    regex = rng.choice(_REGEXES)
    if rng.random() < 0.3:
        regex += rng.choice(_REGEXES)
    what = rng.randrange(5)
    if what == 0:
        body["structured_outputs"] = {"regex": regex}
    elif what == 1:
        body["structured_outputs"] = {"grammar": rng.choice(_GRAMMARS)}
    elif what == 2:
        shape: Any = {"type": "string", "pattern": regex}
        body["response_format"] = _format(shape)
    elif what == 3:
        body["response_format"] = _format(rng.choice(_SHAPES))
    else:
        inner = {"type": "object", "properties": {"a": rng.choice(_SHAPES)}, "required": ["a"]}
        function = {"name": rng.choice(("f", "", "a b", "x" * 200)), "parameters": inner}
        body["tools"] = [{"type": "function", "function": function}] * rng.choice((1, 1, 40))
        body["tool_choice"] = rng.choice(("required", "auto", "none", {"type": "function"}))
    return path, body


def _format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def _large(rng: random.Random) -> tuple[str, Any]:
    text = rng.choice(("a", "ab ", "🏴", "\x00", "word ")) * _LARGE_BYTES
    path, body = _valid(rng)
    field = rng.choice(("prompt", "input", "messages"))
    cut = text[: _LARGE_BYTES // 4]
    body[field] = [{"role": "user", "content": cut}] if field == "messages" else cut
    return path, body


def _many_tokens(rng: random.Random) -> tuple[str, Any]:
    token = rng.choice((5, -1, 2**40, 4096))
    return "/v1/completions", {"model": MODEL, "max_tokens": 2, "prompt": [token] * 100_000}


_KINDS: dict[str, tuple[float, Callable[[random.Random], tuple[str, Any]]]] = {
    "wrong values": (38, _wrong_values),
    "strange fields": (20, _strange_fields),
    "broken bytes": (22, _broken_bytes),
    "nested": (5, _nested),
    "garbage": (4, _garbage),
    "shaped": (10, _shaped),
    "many tokens": (0.3, _many_tokens),
    "large": (0.2, _large),
}
