"""A server that speaks as much of OpenAI's API as benchmarks need, and fails on demand.

It runs in a thread with a loop of its own, or as a program whose last word is its port. The last
word of a prompt says how it answers.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class OpenAIDouble:
    """What it refuses, and what it was asked.

    Attributes:
        refused: fields that are answered with a 400.
        tokens_per_event: tokens that each event brings.
        stops_early: whether answers are one token shorter than asked for.
        bodies: of all requests.
        most_at_once: requests that were in flight together at most.
        url: where it listens.
    """

    refused: set[str] = field(default_factory=set)
    tokens_per_event: int = 2
    stops_early: bool = False
    bodies: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0
    url: str = ""
    _at_once: int = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, then hang up, so that every request needs a connection."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lengths = [x for x in head.split("\r\n") if x.lower().startswith("content-length")]
            if not lengths:
                _write_json(writer, 200, {"data": [{"id": "double"}]})
                return
            body = json.loads(await reader.readexactly(int(lengths[0].split(":")[1])))
            self.bodies.append(body)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            await self._respond(body, writer)
            self._at_once -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def _respond(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        given = set(body) | set(body.get("stream_options", {}))
        if unknown := sorted(self.refused & given):
            _write_json(writer, 400, {"error": {"message": f"{unknown[0]}: unknown"}})
            return
        prompt = _prompt(body)
        how = prompt.split()[-1]
        if how == "busy":
            _write_json(writer, 429, {"error": {"message": "too many"}})
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        if how == "hang":
            await asyncio.sleep(30)
        for event in self._events(body, len(prompt.split())):
            _write_event(writer, event)
            await asyncio.sleep(0)
            if how == "break":
                return
            if how == "fail":
                _write_event(writer, {"error": {"message": "dead"}})
                return
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()

    def _events(self, body: dict[str, Any], num_words: int) -> Iterator[dict[str, Any]]:
        wanted = body["max_tokens"] - self.stops_early
        tells_always = body["stream_options"].get("continuous_usage_stats")
        prompt = {"prompt_tokens": 3 + 2 * num_words, "prompt_tokens_details": {"cached_tokens": 1}}
        given = 0
        while given < wanted:
            given = min(wanted, given + self.tokens_per_event)
            usage = {"completion_tokens": given, **prompt} if tells_always else None
            reason = "length" if given == wanted else None
            choice = {"text": "w", "delta": {"content": "w"}, "finish_reason": reason}
            yield {"choices": [choice], "usage": usage}
        last = {"choices": [], "usage": {"completion_tokens": wanted, **prompt}}
        if body.get("speculation", {}).get("report"):
            last["metrics"] = {"speculative_decoding": {"num_target_passes": wanted // 2}}
        yield last


@contextmanager
def serving(double: OpenAIDouble) -> Iterator[OpenAIDouble]:
    """Serve on a free port until the block ends."""
    started = threading.Event()
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        server = await asyncio.start_server(double.answer, "127.0.0.1", 0)
        double.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        stop = asyncio.Event()
        running.append((asyncio.get_running_loop(), stop))
        started.set()
        await stop.wait()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    started.wait(10)
    try:
        yield double
    finally:
        loop, stop = running[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


def _prompt(body: dict[str, Any]) -> str:
    return str(body["prompt"] if "prompt" in body else body["messages"][-1]["content"])


def _write_event(writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
    writer.write(b"data: " + json.dumps(event).encode() + b"\n\n")


def _write_json(writer: asyncio.StreamWriter, status: int, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)


async def _serve(port: int) -> None:
    server = await asyncio.start_server(OpenAIDouble().answer, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[-1])))
