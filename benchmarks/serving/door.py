"""What a server takes and tells, found out by asking it before anything is measured.

A field beyond OpenAI's is tried once; one that the server refuses is left out, and that is said.
How many of our words make a token is read from the usage of two prompts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.serving.http_stream import HttpClient, Reply
from benchmarks.serving.prompt_sets import CHAT, Ask, body_of, words_of
from benchmarks.serving.records import Record, read_reply
from engine.errors import ConfigError

_PATHS = {CHAT: "/chat/completions", "completions": "/completions"}
_EXTRAS: dict[str, dict[str, Any]] = {
    "ignore_eos": {"ignore_eos": True},
    "continuous_usage_stats": {
        "stream_options": {"include_usage": True, "continuous_usage_stats": True}
    },
    "cache_salt": {"cache_salt": "probe"},
    "speculation": {"speculation": {"report": True}},
}
_LACKING = {
    "ignore_eos": "the server refuses ignore_eos: answers may end before --max-tokens",
    "continuous_usage_stats": "the server refuses continuous_usage_stats: tokens of an event are "
    "the mean of its answer, so ITL per token is an estimate",
    "cache_salt": "the server refuses cache_salt: points ask the same prompts, so a prefix cache "
    "may know them from earlier ones",
    "speculation": "the server refuses speculation.report: no tokens per target pass",
}
_OK = 200
_SHORT, _LONG = 20, 220  # words
_MAX_TOLD = 300  # characters of a server's refusal


@dataclass(slots=True, kw_only=True)
class Door:
    """How requests to one server are written.

    Attributes:
        client: sends them.
        endpoint: `chat` or `completions`.
        model: its name on the wire.
        temperature: of all requests.
        extras: fields beyond OpenAI's that the server takes.
        notes: what it does not take, in words.
        tokens_at_no_word: tokens of a prompt without words, by a straight line through two.
        tokens_per_word: of texts that are made up.
    """

    client: HttpClient
    endpoint: str
    model: str
    temperature: float
    extras: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    tokens_at_no_word: float = 0.0
    tokens_per_word: float = 1.0

    def body(self, ask: Ask, max_tokens: int, seed: int, salt: str) -> bytes:
        """Write a request.

        Args:
            ask: the prompt.
            max_tokens: of the answer.
            seed: of its sampling.
            salt: requests of different salts share no cached prefix.
        """
        fields: dict[str, Any] = {
            "model": self.model,
            **body_of(ask, self.endpoint),
            "max_tokens": max_tokens,
            "temperature": self.temperature,
            "seed": seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for name in self.extras:
            fields |= _EXTRAS[name]
        if "cache_salt" in self.extras:
            fields["cache_salt"] = salt
        return json.dumps(fields).encode()

    async def send(self, body: bytes) -> Reply:
        """Send a request that was written."""
        return await self.client.send("POST", _PATHS[self.endpoint], body)

    def fit(self, ask: Ask, num_tokens: int) -> Ask:
        """Give a made-up prompt the words that make so many tokens, as far as words do."""
        assert isinstance(ask.prompt, str), "made-up prompts are texts"
        words = ask.prompt.split()
        wanted = round((num_tokens - self.tokens_at_no_word) / self.tokens_per_word)
        wanted = max(1, wanted)
        words = (words * (wanted // len(words) + 1))[:wanted]
        return replace(ask, prompt=" ".join(words), num_words=wanted)


async def open_door(
    client: HttpClient, endpoint: str, model: str | None, temperature: float, *, fits: bool
) -> Door:
    """Find out how a server wants to be asked.

    Args:
        client: sends.
        endpoint: `chat` or `completions`.
        model: its name on the wire; None = the first that the server lists.
        temperature: of all requests.
        fits: whether prompts of given lengths will be made up.

    Raises:
        ConfigError: the server cannot be reached, or refuses a plain request.
    """
    name = await _first_model(client) if model is None else model
    door = Door(client=client, endpoint=endpoint, model=name, temperature=temperature)
    plain = await _probe(door, ())
    if plain.failure is not None:
        raise ConfigError(f"url: the server did not answer a plain request: {plain.failure}.")
    if plain.num_output_tokens is None:
        door.notes.append("the server tells no usage in streams: tokens cannot be counted")
    taken: list[str] = []
    for extra in _EXTRAS:
        if (await _probe(door, [*taken, extra])).failure is None:
            taken.append(extra)
        else:
            door.notes.append(_LACKING[extra])
    door.extras = tuple(taken)
    if fits:
        await _fit_words(door)
    return door


async def open_plain(client: HttpClient, endpoint: str) -> Door:
    """Take a server as it is, without asking it for anything but its model's name.

    Raises:
        ConfigError: it does not say.
    """
    return Door(client=client, endpoint=endpoint, model=await _first_model(client), temperature=0.0)


async def _first_model(client: HttpClient) -> str:
    reply = await client.send("GET", "/models")
    if reply.status != _OK:
        why = reply.failure if reply.status is None else f"HTTP {reply.status}"
        raise ConfigError(f"url: /models gives no list of models: {why}.")
    try:
        return str(json.loads(reply.body)["data"][0]["id"])
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError("url: /models gives no list of models; name one.") from error


async def _probe(door: Door, extras: Sequence[str], words: int = _SHORT) -> Record:
    trial = replace(door, extras=tuple(extras))
    reply = await trial.send(trial.body(Ask(words_of(words, 0)), 2, 0, "probe"))
    record = read_reply(0, reply.sent_s, 2, reply)
    if record.failure is not None and reply.body:
        told = reply.body.decode(errors="replace")[:_MAX_TOLD]
        record.failure = f"{record.failure}: {told}"
    return record


async def _fit_words(door: Door) -> None:
    counts = [(await _probe(door, door.extras, n)).num_prompt_tokens for n in (_SHORT, _LONG)]
    short, long = counts
    if short is None or long is None or long <= short:
        door.notes.append("the server tells no prompt tokens: lengths of prompts are in words")
        return
    door.tokens_per_word = (long - short) / (_LONG - _SHORT)
    door.tokens_at_no_word = short - door.tokens_per_word * _SHORT
