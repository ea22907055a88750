"""The client reads what servers send, however it is cut, and tells what went wrong."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import closing

import pytest

from benchmarks.serving.client_cost import metered
from benchmarks.serving.http_stream import EventSplitter, HttpClient, Reply, parse_target
from benchmarks.serving.processes import null_server
from engine.errors import ConfigError

pytest.importorskip("httptools")
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
STREAM = b": ping\r\n\r\nevent: x\r\ndata: one\r\n\r\ndata: two\ndata:more\n\n\n\ndata: [DONE]\n\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"


def test_events_are_the_same_however_the_stream_is_cut() -> None:
    wanted = [b"one", b"two\nmore", b"[DONE]"]
    for size in range(1, len(STREAM) + 1):
        splitter = EventSplitter()
        pieces = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
        assert [event for piece in pieces for event in splitter.feed(piece)] == wanted


def chunked(data: bytes, size: int) -> bytes:
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def exchange(answer: Answer, count: int = 1, timeout_s: float = 20.0) -> list[Reply]:
    """Send requests one after another to a server that answers each connection so."""

    async def run() -> list[Reply]:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await answer(reader, writer)
            except asyncio.IncompleteReadError:
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        target = parse_target(f"http://127.0.0.1:{port}", {"Authorization": "Bearer k"})
        async with server:
            with closing(HttpClient(target, time.perf_counter, timeout_s)) as client:
                return [await client.send("POST", "/x", b"{}") for _ in range(count)]

    return asyncio.run(run())


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    return head + await reader.readexactly(2)


def test_chunked_streams_and_kept_connections() -> None:
    heads, connections = [], 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            heads.append(await read_request(reader))
            writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(STREAM, 7))

    replies = exchange(answer, count=3)
    assert [[data for _, data in reply.events] for reply in replies] == 3 * [
        [b"one", b"two\nmore", b"[DONE]"]
    ]
    assert all(reply.failure is None and reply.status == 200 for reply in replies)
    assert all(r.sent_s <= r.events[0][0] <= r.events[-1][0] <= r.end_s for r in replies)
    assert connections == 1
    assert heads[0].startswith(b"POST /v1/x HTTP/1.1\r\n")
    assert b"Authorization: Bearer k" in heads[0]


def test_a_kept_connection_that_was_closed_is_replaced() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(STREAM, 99))
        # The next request is read, and answered by hanging up.
        await read_request(reader)

    replies = exchange(answer, count=3)
    assert [reply.failure for reply in replies] == [None, None, None]


def test_a_refusal_is_no_stream() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 429 Too Many\r\nContent-Length: 4\r\n\r\nbusy")

    (reply,) = exchange(answer)
    assert (reply.status, reply.body, reply.failure, reply.events) == (429, b"busy", None, [])


def test_streams_that_end_too_soon_time_out_or_make_no_sense_are_told_apart() -> None:
    async def breaking(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(STREAM, 99)[:40])

    async def hanging(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD + b"\r\ndata: one\n\n")
        await reader.read()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)

    async def babbling(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"220 smtp ready\r\n")
        await reader.read()

    assert exchange(breaking)[0].failure == "broken stream"
    (late,) = exchange(hanging, timeout_s=0.3)
    assert (late.failure, [data for _, data in late.events]) == ("timeout", [b"one"])
    assert exchange(silent)[0].failure == "connection"
    assert exchange(babbling)[0].failure == "connection"


def test_nobody_there_is_a_failed_connection() -> None:
    async def run() -> Reply:
        with closing(HttpClient(parse_target("http://127.0.0.1:9", {}), time.time, 5)) as client:
            return await client.send("GET", "/models")

    assert asyncio.run(run()).failure == "connection"


@pytest.mark.parametrize(
    ("url", "path", "port"),
    [
        ("http://h:81", "/v1", 81),
        ("http://h/v1/", "/v1", 80),
        ("https://h/api", "/api/v1", 443),
    ],
)
def test_addresses_are_read_with_and_without_v1(url: str, path: str, port: int) -> None:
    target = parse_target(url, {})
    assert (target.base_path, target.port, target.is_secure) == (path, port, port == 443)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://h", "http://", "http://h:port"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="is no address"):
        parse_target(url, {})


@pytest.mark.parametrize("url", ["http://me:secret@h", "http://h/v1?key=secret", "http://h#x"])
def test_addresses_carry_no_secrets(url: str) -> None:
    with pytest.raises(ConfigError, match="a key comes by --api-key-env") as caught:
        parse_target(url, {})
    assert "secret" not in str(caught.value)


def test_the_client_takes_256_streams_at_once_and_says_what_they_cost() -> None:
    streams, tokens = 256, 8
    body = json.dumps({"max_tokens": tokens}).encode()

    async def run(url: str) -> tuple[list[Reply], dict[str, float | None]]:
        with closing(HttpClient(parse_target(url, {}), time.perf_counter, 60.0)) as client:
            async with metered() as cost:
                sends = [client.send("POST", "/chat/completions", body) for _ in range(streams)]
                replies = list(await asyncio.gather(*sends))
        return replies, cost.numbers(sum(len(reply.events) for reply in replies))

    with null_server() as url:
        replies, numbers = asyncio.run(run(url))
    assert all(reply.failure is None for reply in replies)
    assert {len(reply.events) for reply in replies} == {tokens + 1}
    assert numbers["client_cpu_us_per_event"] is not None
    assert numbers["client_cpu_us_per_event"] > 0
