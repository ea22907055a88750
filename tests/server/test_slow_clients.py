"""Clients that do not read, or do not go on writing, hold neither memory nor the engine."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from engine.config import EngineConfig, ModelConfig
from server.config import ServerConfig
from server.refusals import SlowReaderError
from server.send_buffer import SendBuffer
from tests.doubles import FakeCore
from tests.server.harness import MODEL, USER, run, saying, serving
from tests.server.live_server import Live, listening, read_all, request

CONTEXT = 2**20
MANY = {"messages": USER, "model": MODEL, "stream": True, "logprobs": True, "top_logprobs": 20}


class EndlessCore(FakeCore):
    """A core whose answers are as long as one likes."""

    def __init__(self) -> None:
        super().__init__(EngineConfig(model=ModelConfig(max_model_len=CONTEXT)))
        self.info = replace(self.info, num_blocks=CONTEXT)


def refused(live: Live, reason: str) -> bool:
    """Whether a call was refused for a reason."""
    name = f'requests_refused_total{{model_name="tiny",reason="{reason}"}} 0.0'
    return name not in live.served.metrics.render().decode()


async def until(condition: Any) -> None:
    """Wait until something is so."""
    while not condition():
        await asyncio.sleep(0.01)


def test_a_reader_who_does_not_read_is_cut_off_and_its_request_given_up() -> None:
    async def scenario() -> None:
        core = EndlessCore()
        config = ServerConfig(max_stream_buffer=2**16)
        async with listening(config, core) as live:
            client = await live.connect(receive_bytes=4096)
            body = json.dumps({**MANY, "max_tokens": CONTEXT - 100}).encode()
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(client, request("/v1/chat/completions", body))
            await until(lambda: core.aborted)
            assert refused(live, "slow_reader")
            assert not core.has_unfinished
            # Nothing waits for it any more: not the call, not the connection.
            await until(lambda: not live.server.server_state.connections)
            assert not live.server.server_state.tasks
            told = await read_all(client)
            assert told.startswith(b"HTTP/1.1 200 ")
            # It is cut in the middle, so nobody takes it for a whole answer.
            assert not told.endswith(b"0\r\n\r\n")
            assert b"[DONE]" not in told
            client.close()

    run(scenario)


def test_what_waits_for_a_reader_who_does_not_read_stays_within_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit = 2**16
    most = 0
    put = SendBuffer.put

    async def watched(self: SendBuffer, frame: bytes) -> None:
        nonlocal most
        await put(self, frame)
        most = max(most, self.num_bytes)

    monkeypatch.setattr(SendBuffer, "put", watched)

    async def scenario() -> None:
        core = EndlessCore()
        async with listening(ServerConfig(max_stream_buffer=limit), core) as live:
            client = await live.connect(receive_bytes=4096)
            body = json.dumps({**MANY, "max_tokens": CONTEXT - 100}).encode()
            await asyncio.get_running_loop().sock_sendall(
                client, request("/v1/chat/completions", body)
            )
            await until(lambda: core.aborted)
            client.close()

    run(scenario)
    # One event reaches over it.
    assert limit <= most < limit + 2**14


def test_a_reader_who_reads_gets_all_of_a_long_stream() -> None:
    async def scenario() -> None:
        core = EndlessCore()
        async with listening(ServerConfig(max_stream_buffer=2**16), core) as live:
            client = await live.connect()
            body = json.dumps({**MANY, "max_tokens": 1000}).encode()
            head = request("/v1/chat/completions", body)
            head = head.replace(b"Host", b"Connection: close\r\nHost")
            await asyncio.get_running_loop().sock_sendall(client, head)
            told = await read_all(client)
            assert told.count(b'"finish_reason":"length"') == 1
            assert b"data: [DONE]" in told
            assert not core.aborted
            assert not refused(live, "slow_reader")
            client.close()

    run(scenario)


def test_an_answer_that_nobody_takes_does_not_hold_its_connection() -> None:
    async def scenario() -> None:
        core = EndlessCore()
        config = ServerConfig(send_timeout=0.2)
        async with listening(config, core) as live:
            client = await live.connect(receive_bytes=4096)
            # Larger than what the kernel keeps for a client.
            whole = {**MANY, "stream": False, "max_tokens": 6000}
            await asyncio.get_running_loop().sock_sendall(
                client, request("/v1/chat/completions", json.dumps(whole).encode())
            )
            await until(lambda: refused(live, "slow_reader"))
            await until(lambda: not live.server.server_state.connections)
            client.close()

    run(scenario)


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def scenario() -> None:
        async with listening(ServerConfig(body_timeout=0.2)) as live:
            client = await live.connect()
            half = request("/v1/completions", b'{"prompt": "a', length=1000)
            await asyncio.get_running_loop().sock_sendall(client, half)
            told = await read_all(client)
            assert told.startswith(b"HTTP/1.1 408 ")
            error = json.loads(told.split(b"\r\n\r\n", 1)[1])["error"]
            assert error["code"] == "request_timeout"
            assert "within 0.2 seconds" in error["message"]
            assert refused(live, "slow_body")
            client.close()

    run(scenario)


@pytest.mark.parametrize("start", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: x\r\n"])
def test_a_head_that_does_not_come_is_not_waited_for(start: bytes) -> None:
    async def scenario() -> None:
        async with listening(ServerConfig(body_timeout=0.2)) as live:
            client = await live.connect()
            if start:
                await asyncio.get_running_loop().sock_sendall(client, start)
            assert await read_all(client) == b""
            client.close()

    run(scenario)


def test_a_connection_that_is_used_again_is_not_cut_off() -> None:
    async def scenario() -> None:
        async with listening(ServerConfig(body_timeout=1.0)) as live:
            client = await live.connect()
            loop = asyncio.get_running_loop()
            for _ in range(4):
                await loop.sock_sendall(client, b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert (await loop.sock_recv(client, 2**16)).startswith(b"HTTP/1.1 200 ")
                await asyncio.sleep(0.35)
            client.close()

    run(scenario)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_reader_who_comes_back_in_time_is_told_why_it_was_cut_off(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.send_buffer._PATIENCE_S", 0.05)
    monkeypatch.setattr("server.streaming._LAST_WORDS_S", 20.0)

    async def scenario() -> None:
        core = EndlessCore()
        async with serving(core=core, config=ServerConfig(max_stream_buffer=1000)) as api:
            body = {"messages": USER, "model": MODEL, "stream": True, "max_tokens": 2**19}
            asked = [{"type": "http.request", "body": json.dumps(body).encode()}]
            told: list[bytes] = []

            async def receive() -> dict[str, Any]:
                while not asked:
                    await asyncio.sleep(1)
                return asked.pop()

            async def send(message: Any) -> None:
                told.append(message.get("body", b""))
                if told[-1]:
                    await until(lambda: core.aborted)

            scope = {"type": "http", "method": "POST", "path": path, "query_string": b"",
                     "headers": [(b"content-type", b"application/json")]}  # fmt: skip
            await api.app(scope, receive, send)
            *earlier, last, nothing = told
            assert nothing == b""
            assert b"slow_reader" in last
            assert b"--max-stream-buffer" in last
            assert last.startswith(b"event: error\n" if path == "/v1/messages" else b"data: {")
            assert 0 < sum(map(len, earlier)) < 5000

    run(scenario)


def test_a_buffer_gives_what_it_was_given_in_order() -> None:
    async def scenario() -> None:
        buffer = SendBuffer(10)
        taken = []

        async def take() -> None:
            async for chunk in buffer.chunks():
                taken.append(chunk)
                await asyncio.sleep(0)

        reading = asyncio.create_task(take())
        frames = [bytes([65 + index]) * (index + 1) for index in range(26)]
        for frame in frames:
            await buffer.put(frame)
            assert buffer.num_bytes <= 9 + len(frame)
        buffer.end()
        await reading
        assert b"".join(taken) == b"".join(frames)
        assert buffer.num_bytes == 0

    run(scenario)


def test_a_buffer_that_is_cut_gives_its_last_words_and_takes_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.send_buffer._PATIENCE_S", 0.01)

    async def scenario() -> None:
        buffer = SendBuffer(2)
        await buffer.put(b"abc")
        with pytest.raises(SlowReaderError, match="3 bytes were waiting to be read, and 2 may"):
            await buffer.put(b"d")
        buffer.cut(b"end")
        assert [chunk async for chunk in buffer.chunks()] == [b"end"]

    run(scenario)


def test_failures_of_what_makes_frames_reach_who_sends_them() -> None:
    async def scenario() -> None:
        buffer = SendBuffer(10)
        await buffer.put(b"a")
        buffer.end(ZeroDivisionError("x"))
        chunks = buffer.chunks()
        assert await anext(chunks) == b"a"
        with pytest.raises(ZeroDivisionError):
            await anext(chunks)

    run(scenario)


def test_streams_that_are_stored_are_sent_at_the_readers_pace() -> None:
    async def scenario() -> None:
        config = ServerConfig(max_stream_buffer=1)
        async with serving(saying("a" * 60), config=config) as api:
            body = {"input": "hi", "background": True, "stream": True}
            made = await api.post("/v1/responses", **body)
            response_id = json.loads(made.text.split("data: ")[1].split("\n")[0])["response"]["id"]
            again = await api.http.get(f"/v1/responses/{response_id}?stream=true")
            assert again.text == made.text

    run(scenario)
