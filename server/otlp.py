"""Tells each request as an OpenTelemetry trace, when it is over: a span, and what it consists of.

Names follow the semantic conventions of HTTP and generative AI. Spans hold times, counts and
settings; no prompt, no answer, no key. The caller's own trace (W3C `traceparent`) goes on in them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from engine.version import __version__
from server.call_record import AnswerRecord, Call, ChoiceRecord
from server.trace_endpoint import traces_url

# What is traced: calls that ask for an answer.
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
}
# Neither a request nor the end of the server waits for a collector that does not answer.
_EXPORT_S = 5.0
_NANOSECONDS = 1_000_000_000


class CallTracer:
    """Tells calls to an exporter, from a thread of its own.

    Args:
        model_name: of the model on the wire.
        exporter: gets the spans.
    """

    def __init__(self, model_name: str, exporter: SpanExporter) -> None:
        own = Resource.create({"service.name": "outdraft", "service.version": __version__})
        # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say comes first.
        self._provider = TracerProvider(resource=own.merge(OTELResourceDetector().detect()))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("outdraft", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._model_name = model_name

    def tell(self, call: Call) -> None:
        """Tell a call that is over; one that asks for no answer is none to tell."""
        operation = _OPERATIONS.get(call.path)
        if operation is None or call.method != "POST":
            return
        clock = _Clock()
        span = self._tracer.start_span(
            f"{operation} {self._model_name}",
            context=self._propagator.extract(call.trace_headers, Context()),
            kind=SpanKind.SERVER,
            attributes={
                **_call_attributes(call),
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "outdraft",
                "gen_ai.request.model": self._model_name,
            },
            start_time=clock.nanoseconds(call.started),
        )
        if call.answer is not None:
            span.set_attribute("gen_ai.response.model", self._model_name)
            span.set_attributes(_answer_attributes(call.answer))
            for choice in call.answer.choices:
                self._tell_phases(choice, span, clock)
        if _has_failed(call):
            span.set_status(StatusCode.ERROR)
        span.end(clock.nanoseconds(call.ended))

    def close(self) -> None:
        """Send what is still to be sent, and end the thread; waits for seconds at most."""
        self._provider.shutdown()

    def _tell_phases(self, choice: ChoiceRecord, parent: Span, clock: _Clock) -> None:
        context = set_span_in_context(parent, Context())
        for phase in choice.phases:
            span = self._tracer.start_span(
                phase.name,
                context=context,
                attributes={"outdraft.choice.index": choice.index},
                start_time=clock.nanoseconds(phase.started),
            )
            span.end(clock.nanoseconds(max(phase.started, phase.ended)))


class _Clock:
    """Knows at what time of day a monotonic time was."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def nanoseconds(self, seconds: float) -> int:
        """Give nanoseconds since 1970."""
        return self._offset_ns + round(seconds * _NANOSECONDS)


def otlp_exporter(endpoint: str) -> SpanExporter:
    """Make what sends spans to a collector; headers and certificates come from OpenTelemetry's own
    variables in the environment."""
    exporter: SpanExporter = OTLPSpanExporter(endpoint=traces_url(endpoint), timeout=_EXPORT_S)
    return exporter


def _has_failed(call: Call) -> bool:
    status = call.status or HTTPStatus.OK
    has_error = call.answer is not None and call.answer.error is not None
    return has_error or status >= HTTPStatus.INTERNAL_SERVER_ERROR


def _call_attributes(call: Call) -> Mapping[str, Any]:
    attributes: dict[str, Any] = {
        "http.request.method": call.method,
        "url.path": call.path,
        "outdraft.request_id": call.request_id,
    }
    if call.status is not None:
        attributes["http.response.status_code"] = int(call.status)
    if call.error is not None:
        attributes["error.type"] = call.error
    return attributes


def _answer_attributes(answer: AnswerRecord) -> Mapping[str, Any]:
    speculation = answer.speculation
    attributes: dict[str, Any] = {
        "gen_ai.response.id": answer.answer_id,
        "gen_ai.response.finish_reasons": [str(c.finish_reason) for c in answer.choices],
        "gen_ai.usage.input_tokens": answer.num_prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": answer.num_cached_tokens,
        "gen_ai.usage.output_tokens": answer.num_tokens,
        "gen_ai.request.choice.count": len(answer.choices),
        "gen_ai.request.temperature": answer.temperature,
        "gen_ai.request.top_p": answer.top_p,
        "outdraft.speculation.target_passes": speculation.num_target_passes,
        "outdraft.speculation.drafts": speculation.num_drafts,
        "outdraft.speculation.draft_tokens": speculation.num_draft_tokens,
        "outdraft.speculation.accepted_tokens": speculation.num_accepted_tokens,
    }
    if answer.max_tokens is not None:
        attributes["gen_ai.request.max_tokens"] = answer.max_tokens
    for drafter, counts in speculation.by_drafter.items():
        attributes[f"outdraft.speculation.{drafter}.draft_tokens"] = counts.num_draft_tokens
        attributes[f"outdraft.speculation.{drafter}.accepted_tokens"] = counts.num_accepted_tokens
    return attributes
