"""Requests of which the whole answer is known beforehand, and how the answer of any is read.

Sampling is seeded, so what one of them gets on a quiet server it must get in any company.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.serving.http_stream import HttpClient, Reply

MODEL = "demo"
CHAT, COMPLETIONS = "/chat/completions", "/completions"
_DONE = b"[DONE]"
_WORDS = (
    "river stone lamp seven quiet market under green Anna bread letter winter counts 12 horses "
    "and the or because blue slow window answer 9 paper once boat near garden asks why"
).split()
_SHAPE = {
    "type": "json_schema",
    "json_schema": {
        "name": "note",
        "schema": {
            "type": "object",
            "properties": {
                "mood": {"enum": ["good", "bad", "mixed"]},
                "count": {"type": "integer", "minimum": 0, "maximum": 99},
            },
            "required": ["mood", "count"],
            "additionalProperties": False,
        },
    },
}


@dataclass(frozen=True, slots=True)
class Ask:
    """A streamed request.

    Attributes:
        path: behind `/v1`.
        body: what is sent.
    """

    path: str
    body: Mapping[str, Any]

    def sent(self, **more: Any) -> bytes:
        """Give the body as bytes, with some fields changed."""
        return json.dumps({**self.body, **more}).encode()

    @property
    def num_choices(self) -> int:
        """Answers that it asks for."""
        return int(self.body.get("n", 1))


def random_text(rng: random.Random, num_words: int) -> str:
    """Draw words."""
    return " ".join(rng.choices(_WORDS, k=num_words))


def make_asks(rng: random.Random, count: int) -> list[Ask]:
    """Draw requests of all kinds in turn."""
    return [_make_ask(rng, number) for number in range(count)]


def _make_ask(rng: random.Random, number: int) -> Ask:
    text = random_text(rng, rng.randint(4, 60))
    common = {"model": MODEL, "stream": True, "seed": rng.randrange(2**31)}
    common |= {"max_tokens": rng.randint(8, 40), "temperature": 0.8}
    chat = common | {"messages": [{"role": "user", "content": text}]}
    complete = common | {"prompt": text, "ignore_eos": True}
    return [
        Ask(COMPLETIONS, complete),
        Ask(CHAT, chat),
        Ask(COMPLETIONS, complete | {"temperature": 0.0}),
        Ask(CHAT, chat | {"response_format": _SHAPE, "max_tokens": 60}),
        Ask(COMPLETIONS, complete | {"n": 2}),
        Ask(CHAT, chat | {"logprobs": True, "top_logprobs": 3}),
    ][number % 6]


def long_ask(rng: random.Random, max_tokens: int, num_words: int = 12) -> Ask:
    """Draw a request that nobody asked before, and that goes on for as long as it is said."""
    text = f"{rng.randrange(10**9)} {random_text(rng, num_words)}"
    body = {"model": MODEL, "stream": True, "prompt": text, "max_tokens": max_tokens}
    return Ask(COMPLETIONS, body | {"ignore_eos": True, "seed": rng.randrange(2**31)})


@dataclass(slots=True)
class Told:
    """What a stream told.

    Attributes:
        texts: of each choice.
        finish_reasons: of each choice; one each, where all is well.
        errors: codes, or types where there is none.
        num_done: times that it said that it was over.
        is_done_last: whether nothing came behind that.
    """

    texts: dict[int, str] = field(default_factory=dict)
    finish_reasons: dict[int, list[str]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    num_done: int = 0
    is_done_last: bool = False


def read_told(reply: Reply) -> Told:
    """Read a stream's events."""
    told = Told()
    for _, data in reply.events:
        told.is_done_last = data == _DONE
        if told.is_done_last:
            told.num_done += 1
            continue
        event = json.loads(data)
        if "error" in event:
            told.errors.append(str(event["error"].get("code") or event["error"].get("type")))
        for choice in event.get("choices", ()):
            index = choice["index"]
            piece = choice.get("text") or choice.get("delta", {}).get("content") or ""
            told.texts[index] = told.texts.get(index, "") + piece
            if choice.get("finish_reason") is not None:
                told.finish_reasons.setdefault(index, []).append(choice["finish_reason"])
    return told


@dataclass(frozen=True, slots=True)
class Ending:
    """How a request ended.

    Attributes:
        kind: `served`, `refused`, `failed`, or `unlawful`.
        detail: the code of the refusal or error, or which law was broken.
        words: of each choice, with its finish reason, where it was served.
    """

    kind: str
    detail: str = ""
    words: tuple[tuple[int, str, str], ...] = ()


def ending_of(reply: Reply, num_choices: int) -> Ending:
    """Judge how a streamed request ended; every one ends once, with a reason or an error."""
    if reply.failure is not None:
        return Ending("unlawful", f"ended by {reply.failure} with status {reply.status}")
    if reply.status != 200:
        return _refusal(reply)
    told = read_told(reply)
    if told.num_done != 1 or not told.is_done_last:
        return Ending("unlawful", f"{told.num_done} ends")
    if any(len(reasons) != 1 for reasons in told.finish_reasons.values()):
        return Ending("unlawful", "a choice ended twice")
    if told.errors:
        is_once = len(told.errors) == 1 and len(told.finish_reasons) < num_choices
        return Ending("failed" if is_once else "unlawful", ",".join(told.errors))
    if len(told.finish_reasons) != num_choices:
        return Ending("unlawful", f"{len(told.finish_reasons)} of {num_choices} choices ended")
    words = tuple(
        (index, told.texts.get(index, ""), reasons[0])
        for index, reasons in sorted(told.finish_reasons.items())
    )
    return Ending("served", words=words)


def _refusal(reply: Reply) -> Ending:
    try:
        error = json.loads(reply.body)["error"]
        code = str(error.get("code") or error.get("type"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return Ending("unlawful", f"status {reply.status} without an error")
    is_lawful = reply.status is not None and (reply.status < 500 or reply.status == 503)
    return Ending("refused" if is_lawful else "unlawful", f"{reply.status} {code}")


@dataclass(frozen=True, slots=True)
class Known:
    """A request and its whole answer.

    Attributes:
        ask: see above.
        words: what a quiet server answered.
    """

    ask: Ask
    words: tuple[tuple[int, str, str], ...]


async def learn(client: HttpClient, asks: list[Ask]) -> list[Known]:
    """Ask one after the other, twice: an answer that comes in two ways is nobody's yardstick."""
    known = []
    for ask in asks:
        first, again = [
            ending_of(await client.send("POST", ask.path, ask.sent()), ask.num_choices)
            for _ in range(2)
        ]
        assert first.kind == "served", f"a quiet server did not answer: {first}"
        assert first == again, f"a quiet server answered in two ways: {first} {again}"
        known.append(Known(ask, first.words))
    return known
