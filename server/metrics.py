"""Prometheus metrics: the engine's counters at each scrape, and times as the server sees them.

Names mirror the field's, with the prefix `outdraft:`. Nothing is counted twice: what the engine
counts is read from its last message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.registry import Collector

from engine.client.supervision import FaultCounts
from engine.metrics import EngineStats
from engine.request import FinishReason
from server.call_record import ChoiceRecord
from server.engine_metrics import EngineMetrics
from server.fault_metrics import FaultMetrics
from server.refusals import Refusal

PREFIX = "outdraft:"
_REQUEST_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_FIRST_TOKEN_BUCKETS = (0.005, 0.01, 0.025, 0.05, *_REQUEST_BUCKETS[:-2])
_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)
# Waiting and prompts take milliseconds on an idle machine, and minutes under load.
_PHASE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, *_REQUEST_BUCKETS)
_LENGTH_BUCKETS = tuple(float(2**power) for power in range(18))
_HISTOGRAMS = {
    "time_to_first_token_seconds": ("From arrival to the first token.", _FIRST_TOKEN_BUCKETS),
    "inter_token_latency_seconds": ("Time per token after the first.", _TOKEN_BUCKETS),
    "request_time_per_output_token_seconds": (
        "Mean time per token after the first, of a choice.",
        _TOKEN_BUCKETS,
    ),
    "e2e_request_latency_seconds": ("From arrival to the end of a choice.", _REQUEST_BUCKETS),
    "request_queue_time_seconds": ("From arrival to the first computation.", _PHASE_BUCKETS),
    "request_prefill_time_seconds": (
        "From the first computation to the first token.",
        _PHASE_BUCKETS,
    ),
    "request_decode_time_seconds": ("From the first token to the end.", _PHASE_BUCKETS),
    "request_prompt_tokens": ("Prompt tokens of a choice.", _LENGTH_BUCKETS),
    "request_generation_tokens": ("Tokens of a choice that ended.", _LENGTH_BUCKETS),
}


class ServerMetrics:
    """What one server measures.

    Args:
        model_name: value of the label `model_name`.
        read_stats: gives the engine's counters.
        read_faults: gives its client's counts of what went wrong; by default there is nothing.
        synthetic_acceptance: see `engine.door.ModelInfo`; told only where there is any.
    """

    def __init__(
        self,
        model_name: str,
        read_stats: Callable[[], EngineStats],
        synthetic_acceptance: Sequence[float] = (),
        *,
        read_faults: Callable[[], FaultCounts] = FaultCounts,
    ) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(EngineMetrics(PREFIX, model_name, read_stats))
        self._faults = FaultMetrics(PREFIX, model_name, self._registry, read_stats, read_faults)
        if synthetic_acceptance:
            self._mark(model_name, synthetic_acceptance)
        self._histograms = {
            name: Histogram(
                PREFIX + name, meaning, ["model_name"], registry=self._registry, buckets=buckets
            ).labels(model_name)
            for name, (meaning, buckets) in _HISTOGRAMS.items()
        }
        outcomes = Counter(
            PREFIX + "request_success",
            "Choices that ended, by the reason: stop, length, abort or error.",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )
        refusals = Counter(
            PREFIX + "requests_refused",
            "Calls refused, or given up, by the reason.",
            ["model_name", "reason"],
            registry=self._registry,
        )
        self._refusals = {reason: refusals.labels(model_name, reason) for reason in Refusal}
        self._outcomes = {reason: outcomes.labels(model_name, reason) for reason in FinishReason}

    def observe_first_token(self, seconds: float) -> None:
        """Count the wait for a choice's first token."""
        self._histograms["time_to_first_token_seconds"].observe(seconds)

    def observe_tokens(self, num_tokens: int, seconds: float) -> None:
        """Count tokens that arrived together, each with its share of the wait."""
        histogram = self._histograms["inter_token_latency_seconds"]
        for _ in range(num_tokens):
            histogram.observe(seconds / num_tokens)

    def observe_replayed_choice(self, choice: ChoiceRecord) -> None:
        """Count the end of a choice that nobody worked for, and so no time of it."""
        self._outcomes[choice.finish_reason].inc()

    def observe_choice(self, choice: ChoiceRecord) -> None:
        """Count the end of a choice, and what it took; where it had no token, that it ended."""
        self._outcomes[choice.finish_reason].inc()
        histograms = self._histograms
        histograms["e2e_request_latency_seconds"].observe(choice.seconds)
        histograms["request_prompt_tokens"].observe(choice.num_prompt_tokens)
        histograms["request_generation_tokens"].observe(choice.num_tokens)
        if choice.seconds_per_token is not None:
            name = "request_time_per_output_token_seconds"
            histograms[name].observe(choice.seconds_per_token)
        for phase in choice.phases:
            histograms[f"request_{phase.name}_time_seconds"].observe(phase.seconds)

    def count_refusal(self, reason: Refusal) -> None:
        """Count a call that was refused, or given up."""
        self._refusals[reason].inc()

    def observe_error(self, error: BaseException) -> None:
        """Count an error that a caller is told."""
        self._faults.observe_error(error)

    def collect(self) -> Iterable[Metric]:
        """Give everything as it is now."""
        return self._registry.collect()

    def add(self, collector: Collector) -> None:
        """Tell what another part of the server counts, too."""
        self._registry.register(collector)

    def render(self) -> bytes:
        """Write everything in Prometheus' text format."""
        return generate_latest(self._registry)

    def _mark(self, model_name: str, synthetic_acceptance: Sequence[float]) -> None:
        gauge = Gauge(
            PREFIX + "synthetic_acceptance",
            "Chance with which drafts are accepted unseen, the last for all positions beyond.",
            ["model_name", "position"],
            registry=self._registry,
        )
        for position, rate in enumerate(synthetic_acceptance):
            gauge.labels(model_name, position).set(rate)
