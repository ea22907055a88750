"""`outdraft chat`: a terminal chat against a running server.

Works in a terminal and with questions piped in, one per line. Ctrl-C ends the answer, not the chat.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from rich.console import Console

from engine.errors import ConfigError, OutdraftError
from engine.sampling_params import SamplingParams
from server.synthetic_mark import HEADER as SYNTHETIC_HEADER

_HELP = "/reset forgets the conversation, /exit ends, Ctrl-C stops an answer"
_CONNECT_S = 5.0
_SAMPLING_FLAGS = (
    ("temperature", float, "0 is greedy"),
    ("top_p", float, "keep the likeliest tokens up to this probability"),
    ("seed", int, "same seed, same answers"),
    ("max_tokens", int, "tokens per answer at most"),
)


class ChatError(OutdraftError):
    """The server cannot be reached, or refused."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add what the command does, and its flags."""
    parser.description = f"Chat with a server. {_HELP}."
    parser.add_argument(
        "--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)"
    )
    parser.add_argument(
        "--api-key-env", metavar="NAME", help="environment variable that holds the server's key"
    )
    parser.add_argument("--model", help="model to ask for; none = the first that is served")
    parser.add_argument("--system", help="instruction before the conversation")
    for name, kind, text in _SAMPLING_FLAGS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)


def run(args: argparse.Namespace) -> int:
    """Chat until the user leaves.

    Raises:
        ChatError: the server cannot be reached, or refused.
        ConfigError: the variable of the key is not set.
    """
    console = Console(soft_wrap=True, highlight=False)
    timeout = httpx.Timeout(None, connect=_CONNECT_S)
    headers = key_headers(args.api_key_env)
    with httpx.Client(base_url=args.url, timeout=timeout, headers=headers) as http:
        chat = Chat(http, args.model or _first_model(http), _options(args), args.system)
        if sys.stdin.isatty():
            console.print(f"{chat.model} at {args.url}. {_HELP}.", style="dim", markup=False)
        for line in _lines(console):
            if line == "/exit":
                break
            if line == "/reset":
                chat.reset()
            elif line.startswith("/"):
                console.print(f"{_HELP}.", style="dim")
            elif line:
                _answer(console, chat, line)
    return 0


def key_headers(variable: str | None) -> dict[str, str]:
    """Give the headers that carry a key.

    Args:
        variable: environment variable that holds it; None = there is none.

    Raises:
        ConfigError: the variable is not set.
    """
    if variable is None:
        return {}
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(f"api_key_env: {variable} is not set.")
    return {"authorization": f"Bearer {key}"}


@dataclass(slots=True)
class Chat:
    """A conversation with one server.

    Attributes:
        http: with the server's address.
        model: its name on the wire.
        options: sampling fields of every request.
        system: the instruction before the conversation.
        messages: the conversation so far.
        last: what the server said of the last answer: `usage`, `metrics`, and
            `synthetic_acceptance` where the answer is not the model's.
    """

    http: httpx.Client
    model: str
    options: dict[str, Any]
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the conversation."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def ask(self, question: str) -> Generator[str, None, None]:
        """Ask, and give the answer as it comes; an answer that was cut short is remembered.

        Raises:
            ChatError: the server cannot be reached, refused, or failed in the middle.
        """
        self.messages.append({"role": "user", "content": question})
        texts: list[str] = []
        try:
            for chunk in self._stream():
                self.last |= {k: chunk[k] for k in ("usage", "metrics") if chunk.get(k)}
                for choice in chunk["choices"]:
                    text = choice["delta"].get("content") or ""
                    texts.append(text)
                    yield text
        finally:
            if texts:
                self.messages.append({"role": "assistant", "content": "".join(texts)})
            else:
                self.messages.pop()

    def _stream(self) -> Iterator[dict[str, Any]]:
        self.last = {}
        body = {
            "model": self.model,
            "messages": self.messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            "speculation": {"report": True},
            **self.options,
        }
        try:
            with self.http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    response.read()
                    raise ChatError(_error_message(response))
                if SYNTHETIC_HEADER in response.headers:
                    self.last["synthetic_acceptance"] = response.headers[SYNTHETIC_HEADER]
                for line in response.iter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        yield _checked(json.loads(line.removeprefix("data: ")))
        except httpx.HTTPError as error:
            raise ChatError(f"The server at {self.http.base_url} failed: {error}.") from error


def _answer(console: Console, chat: Chat, question: str) -> None:
    """Print one answer and what it took; an interrupt or a failure ends only the answer."""
    started = time.perf_counter()
    answer = chat.ask(question)
    try:
        for text in answer:
            console.out(text, end="", highlight=False)
        console.out("")
        if console.is_terminal:
            summary = _summary(chat.last, time.perf_counter() - started)
            console.print(summary, style="dim")
    except KeyboardInterrupt:
        answer.close()
        console.print(" (stopped)", style="dim", markup=False)
    except ChatError as error:
        if not console.is_terminal:
            raise
        console.print(str(error), style="red", markup=False)
    finally:
        if rates := chat.last.get("synthetic_acceptance"):
            mark = f"(synthetic acceptance {rates}: the answer is not the model's)"
            console.print(mark, style="red", markup=False)


def _summary(last: dict[str, Any], seconds: float) -> str:
    """Say in one line what an answer took."""
    num_tokens = last.get("usage", {}).get("completion_tokens", 0)
    parts = [f"{num_tokens} tokens", f"{num_tokens / seconds:.0f} tokens/s"]
    speculation = last.get("metrics", {}).get("speculative_decoding", {})
    if speculation.get("num_drafts"):
        parts.append(f"{speculation['tokens_per_target_pass']:.2f} tokens per target pass")
    return ", ".join(parts)


def _lines(console: Console) -> Iterator[str]:
    """Give what the user types, stripped, until the end of input; Ctrl-C clears the line."""
    prompt = "[bold]> [/bold]" if sys.stdin.isatty() else ""
    while True:
        try:
            yield console.input(prompt).strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            console.print(f"\n{_HELP}.", style="dim")


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Give the sampling fields that were set, checked here so that mistakes show at once."""
    given = {name: getattr(args, name) for name, _, _ in _SAMPLING_FLAGS}
    options = {name: value for name, value in given.items() if value is not None}
    SamplingParams(**options)
    return options


def _first_model(http: httpx.Client) -> str:
    try:
        response = http.get("/v1/models")
    except httpx.HTTPError as error:
        raise ChatError(
            f"No server answers at {http.base_url} ({error}); start one with `outdraft serve`."
        ) from error
    if response.status_code != httpx.codes.OK:
        raise ChatError(_error_message(response))
    name: str = response.json()["data"][0]["id"]
    return name


def _checked(event: dict[str, Any]) -> dict[str, Any]:
    if "error" in event:
        raise ChatError(event["error"]["message"])
    return event


def _error_message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{response.url} answered {response.status_code}."
