"""Traces: one span per request with what it consists of, in the caller's trace, without words."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from engine.errors import ConfigError, EngineDeadError
from server.config import ServerConfig
from server.http import _start_tracing
from server.trace_endpoint import traces_url
from tests.doubles import AnswerFn
from tests.server.harness import MODEL, USER, Api, run, saying, serving

SAID = "zanzibar"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine-1"}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": SAID}]}


@asynccontextmanager
async def traced(answer: AnswerFn) -> AsyncIterator[tuple[Api, Callable[[], list[Any]]]]:
    """Serve with traces that stay in memory; gives them, sent so far."""
    pytest.importorskip("opentelemetry.sdk.trace")
    otlp = pytest.importorskip("server.otlp", exc_type=ImportError)
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    tracer = otlp.CallTracer(MODEL, exporter)

    def sent() -> list[Any]:
        tracer._provider.force_flush()
        spans = list(exporter.get_finished_spans())
        exporter.clear()
        return spans

    async with serving(answer) as api:
        api.served.trace = tracer.tell
        yield api, sent
    tracer.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_a_span_with_its_parts_in_the_callers_trace(stream: bool) -> None:
    async def scenario() -> None:
        async with traced(saying("hello")) as (api, sent):
            body = {**CHAT, "stream": stream, "temperature": 0.5, "max_tokens": 20}
            await api.http.post("/v1/chat/completions", json=body, headers=HEADERS)
            *parts, whole = sorted(sent(), key=lambda span: span.end_time)
            if whole.parent.span_id != int(PARENT, 16):
                parts, whole = check_order(parts, whole)
            assert whole.name == f"chat {MODEL}"
            assert whole.kind.name == "SERVER"
            assert whole.context.trace_id == int(TRACE, 16)
            assert whole.parent.span_id == int(PARENT, 16)
            assert [part.name for part in parts] == ["queue", "prefill", "decode"]
            for part in parts:
                assert part.parent.span_id == whole.context.span_id
                assert whole.start_time <= part.start_time <= part.end_time <= whole.end_time
            assert parts[0].end_time == parts[1].start_time
            assert parts[1].end_time == parts[2].start_time
            said = whole.attributes
            assert said["gen_ai.operation.name"] == "chat"
            assert said["gen_ai.request.model"] == said["gen_ai.response.model"] == MODEL
            assert said["gen_ai.request.temperature"] == 0.5
            assert said["gen_ai.request.max_tokens"] == 20
            assert said["gen_ai.usage.input_tokens"] == len(f"<user>{SAID}<assistant>")
            assert said["gen_ai.usage.output_tokens"] == 6
            assert said["gen_ai.response.finish_reasons"] == ("stop",)
            assert said["http.response.status_code"] == 200
            assert said["outdraft.request_id"] == "mine-1"
            assert said["outdraft.speculation.draft_tokens"] == 3
            assert said["outdraft.speculation.draft_model.accepted_tokens"] == 3
            told = "".join(span.to_json() for span in (whole, *parts))
            assert SAID not in told
            assert "hello" not in told

    run(scenario)


def check_order(parts: list[Any], whole: Any) -> tuple[list[Any], Any]:
    """Find the whole among spans that ended at the same nanosecond."""
    spans = [*parts, whole]
    (found,) = [span for span in spans if span.parent.span_id == int(PARENT, 16)]
    return [span for span in spans if span is not found], found


def test_each_choice_has_parts_of_its_own_and_a_trace_may_begin_here() -> None:
    async def scenario() -> None:
        async with traced(saying("hello")) as (api, sent):
            await api.chat(n=2)
            await api.complete(max_tokens=2)
            spans = sent()
            first, second = [span for span in spans if span.kind.name == "SERVER"]
            assert first.parent is second.parent is None
            assert first.context.trace_id != second.context.trace_id
            assert second.name == f"text_completion {MODEL}"
            parts = [s for s in spans if s.context.trace_id == first.context.trace_id]
            indices = [s.attributes["outdraft.choice.index"] for s in parts if s is not first]
            assert sorted(indices) == [0, 0, 0, 1, 1, 1]

    run(scenario)


def test_failures_are_spans_too_and_nothing_else_is() -> None:
    async def scenario() -> None:
        async with traced(saying("hello")) as (api, sent):
            await api.http.get("/health")
            await api.http.get("/v1/models")
            assert sent() == []
            await api.chat(nonsense=SAID)
            (refused,) = sent()
            assert refused.attributes["http.response.status_code"] == 400
            assert refused.attributes["error.type"] == "InvalidRequestError"
            assert refused.status.status_code.name == "UNSET"
            api.engine.is_paused = True
            asking = asyncio.create_task(api.chat(stream=True))
            await asyncio.sleep(0.05)
            api.engine._die(EngineDeadError("gone"))
            await asking
            (failed,) = sent()
            assert failed.attributes["error.type"] == "EngineDeadError"
            assert failed.attributes["gen_ai.response.finish_reasons"] == ("error",)
            assert failed.status.status_code.name == "ERROR"

    run(scenario)


def test_a_caller_that_does_not_sample_is_not_traced() -> None:
    async def scenario() -> None:
        async with traced(saying("hello")) as (api, sent):
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
            await api.http.post("/v1/chat/completions", json=CHAT, headers=headers)
            assert sent() == []

    run(scenario)


def test_without_an_endpoint_nothing_is_traced() -> None:
    async def scenario() -> None:
        async with serving() as api:
            _start_tracing(api.served, ServerConfig())()
            assert api.served.trace is None
            info = (await api.http.get("/server_info")).json()["observability"]
            assert info["tracing"] is False
            assert (await api.chat(messages=USER)).status_code == 200

    run(scenario)


class Collector(BaseHTTPRequestHandler):
    """Takes spans by HTTP."""

    got: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.got.append((self.path, body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[HTTPServer]:
    """A collector that listens."""
    Collector.got = []
    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_spans_reach_a_collector(collector: HTTPServer) -> None:
    pytest.importorskip("opentelemetry.sdk.trace")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    proto = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")

    async def scenario() -> None:
        config = ServerConfig(otlp_endpoint=f"http://127.0.0.1:{collector.server_port}")
        async with serving(saying("hello"), config=config) as api:
            end = _start_tracing(api.served, config)
            info = (await api.http.get("/server_info")).json()["observability"]
            assert info["tracing"] is True
            await api.chat()
            await asyncio.to_thread(end)

    run(scenario)
    ((path, body),) = Collector.got
    assert path == "/v1/traces"
    (resource,) = proto.ExportTraceServiceRequest.FromString(body).resource_spans
    named = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert named["service.name"] == "outdraft"
    names = [span.name for scope in resource.scope_spans for span in scope.spans]
    assert sorted(names) == [f"chat {MODEL}", "decode", "prefill", "queue"]


def test_tracing_that_is_not_installed_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in (lambda _name: None, _raise):
        monkeypatch.setattr("server.trace_endpoint.find_spec", missing)
        with pytest.raises(ConfigError, match=r"otlp_endpoint: .*outdraft\[otel\]"):
            ServerConfig(otlp_endpoint="http://localhost:4318")


def _raise(name: str) -> None:
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize(
    ("endpoint", "told"),
    [
        ("localhost:4318", "no address"),
        ("ftp://localhost", "no address"),
        ("http://", "no address"),
        ("http://me:secret@localhost:4318", "OTEL_EXPORTER_OTLP_HEADERS"),
    ],
)
def test_addresses_that_are_none_or_hold_a_secret_are_refused(endpoint: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as refusal:
        ServerConfig(otlp_endpoint=endpoint)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("base", ["http://c:4318", "http://c:4318/", "http://c:4318/v1/traces"])
def test_spans_are_posted_where_collectors_take_them(base: str) -> None:
    assert traces_url(base) == "http://c:4318/v1/traces"
