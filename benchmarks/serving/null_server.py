"""A server that answers at once with words of no meaning, so that a client's own floor can be seen.

`python -m benchmarks.serving.null_server` serves on a free port, which it prints, until its input
ends. Every event is written on its own; `--interval-ms` puts time between those of a stream.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_MODELS = b'{"object":"list","data":[{"id":"null","object":"model"}]}'
_BLANK = b"\r\n\r\n"


async def serve(interval_s: float) -> None:
    """Serve until standard input ends, and print the port first."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await _answer(reader, writer, interval_s)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    async with server:
        await asyncio.to_thread(sys.stdin.read)


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, interval_s: float
) -> None:
    head = (await reader.readuntil(_BLANK)).decode("latin-1")
    lengths = [line for line in head.split("\r\n") if line.lower().startswith("content-length:")]
    body = await reader.readexactly(int(lengths[0].split(":")[1])) if lengths else b""
    if not body:
        writer.write(
            f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(_MODELS)}\r\n\r\n".encode()
            + _MODELS
        )
        return
    count = int(json.loads(body).get("max_tokens") or 1)
    writer.write(_HEAD)
    for number in range(1, count + 1):
        writer.write(_chunk(_event(number, is_last=number == count)))
        await asyncio.sleep(interval_s)
    writer.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def _event(number: int, *, is_last: bool) -> bytes:
    event = {
        "id": "null",
        "object": "chat.completion.chunk",
        "choices": [
            {
                "index": 0,
                "text": " word",
                "delta": {"content": " word"},
                "finish_reason": "length" if is_last else None,
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": number, "total_tokens": number + 1},
    }
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interval-ms", type=float, default=0.0, help="default: 0")
    asyncio.run(serve(parser.parse_args().interval_ms / 1000))
