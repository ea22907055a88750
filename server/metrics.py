"""Prometheus metrics: the engine's counters at each scrape, and times as the server sees them.

Names mirror the field's, with the prefix `outdraft:`. Nothing is counted twice: what the engine
counts is read from its last message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.client.supervision import FaultCounts
from engine.metrics import DrafterSeconds, EngineStats
from engine.request import DraftCounts, FinishReason, SpeculationStats
from server.fault_metrics import FaultMetrics
from server.refusals import Refusal

_PREFIX = "outdraft:"
_FIRST_TOKEN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)
_REQUEST_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

_NO_SECONDS = DrafterSeconds()
_BY_DRAFTER: tuple[tuple[str, str, Callable[[DraftCounts, DrafterSeconds], float]], ...] = (
    ("drafts", "Passes that verified a drafter's drafts.", lambda c, _: c.num_drafts),
    (
        "draft_tokens",
        "Draft tokens verified, by who drafted them.",
        lambda c, _: c.num_draft_tokens,
    ),
    (
        "accepted_tokens",
        "Draft tokens accepted, by who drafted them.",
        lambda c, _: c.num_accepted_tokens,
    ),
    (
        "wasted_tokens",
        "Draft tokens verified in vain, by who drafted them.",
        lambda c, _: c.num_wasted_tokens,
    ),
    ("draft_seconds", "Time spent on drafts, by who made them.", lambda _, s: s.draft),
    (
        "verify_seconds",
        "Time in target passes, by whose drafts the rows were.",
        lambda _, s: s.verify,
    ),
)


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
        self._registry.register(_EngineCollector(model_name, read_stats))
        self._faults = FaultMetrics(_PREFIX, model_name, self._registry, read_stats, read_faults)
        if synthetic_acceptance:
            self._mark(model_name, synthetic_acceptance)
        self._first_token = self._histogram(
            model_name, "time_to_first_token_seconds", "From arrival to the first token.",
            _FIRST_TOKEN_BUCKETS,
        )  # fmt: skip
        self._token = self._histogram(
            model_name, "inter_token_latency_seconds", "Time per token after the first.",
            _TOKEN_BUCKETS,
        )  # fmt: skip
        self._request = self._histogram(
            model_name, "e2e_request_latency_seconds", "From arrival to the end of a choice.",
            _REQUEST_BUCKETS,
        )  # fmt: skip
        outcomes = Counter(
            _PREFIX + "request_success",
            "Choices that ended, by the reason: stop, length, abort or error.",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )
        refusals = Counter(
            _PREFIX + "requests_refused",
            "Calls refused, or given up, by the reason.",
            ["model_name", "reason"],
            registry=self._registry,
        )
        self._refusals = {reason: refusals.labels(model_name, reason) for reason in Refusal}
        self._outcomes = {reason: outcomes.labels(model_name, reason) for reason in FinishReason}

    def observe_first_token(self, seconds: float) -> None:
        """Count the wait for a choice's first token."""
        self._first_token.observe(seconds)

    def observe_tokens(self, num_tokens: int, seconds: float) -> None:
        """Count tokens that arrived together, each with its share of the wait."""
        for _ in range(num_tokens):
            self._token.observe(seconds / num_tokens)

    def observe_outcome(self, reason: FinishReason, seconds: float) -> None:
        """Count the end of a choice."""
        self._outcomes[reason].inc()
        self._request.observe(seconds)

    def count_refusal(self, reason: Refusal) -> None:
        """Count a call that was refused, or given up."""
        self._refusals[reason].inc()

    def observe_error(self, error: BaseException) -> None:
        """Count an error that a caller is told."""
        self._faults.observe_error(error)

    def render(self) -> bytes:
        """Write everything in Prometheus' text format."""
        return generate_latest(self._registry)

    def _mark(self, model_name: str, synthetic_acceptance: Sequence[float]) -> None:
        gauge = Gauge(
            _PREFIX + "synthetic_acceptance",
            "Chance with which drafts are accepted unseen, the last for all positions beyond.",
            ["model_name", "position"],
            registry=self._registry,
        )
        for position, rate in enumerate(synthetic_acceptance):
            gauge.labels(model_name, position).set(rate)

    def _histogram(
        self, model_name: str, name: str, meaning: str, buckets: tuple[float, ...]
    ) -> Histogram:
        histogram = Histogram(
            _PREFIX + name, meaning, ["model_name"], registry=self._registry, buckets=buckets
        )
        return histogram.labels(model_name)


class _EngineCollector(Collector):
    """Reads the engine's counters when Prometheus asks."""

    def __init__(self, model_name: str, read_stats: Callable[[], EngineStats]) -> None:
        self._model_name = model_name
        self._read_stats = read_stats

    def collect(self) -> Iterable[Metric]:
        stats = self._read_stats()
        yield from self._gauges(stats)
        yield from self._counters(stats)
        yield from self._times(stats)
        yield from self._per_position(stats.speculation)
        yield from self._per_drafter(stats)
        yield self._per_drafter_position(stats)

    def _gauges(self, stats: EngineStats) -> Iterator[Metric]:
        for name, meaning, value in (
            ("num_requests_running", "Requests that hold KV cache blocks.", stats.num_running),
            ("num_requests_waiting", "Requests in the queue.", stats.num_waiting),
            ("kv_cache_usage_perc", "KV cache blocks in use, 0 to 1.", stats.kv_cache_usage),
            (
                "estimated_speedup",
                "Tokens per second that the last step's drafts promised, over those of none.",
                stats.estimated_speedup,
            ),
            ("num_graphs", "Passes recorded as CUDA graphs.", stats.num_graphs),
            ("graph_bytes", "Device memory that recorded passes hold.", stats.graph_bytes),
        ):
            gauge = GaugeMetricFamily(_PREFIX + name, meaning, labels=["model_name"])
            gauge.add_metric([self._model_name], value)
            yield gauge

    def _counters(self, stats: EngineStats) -> Iterator[Metric]:
        speculation = stats.speculation
        for name, meaning, value in (
            ("prompt_tokens", "Prompt tokens of accepted requests.", stats.num_prompt_tokens),
            ("generation_tokens", "Tokens generated.", speculation.num_output_tokens),
            ("engine_steps", "Steps that ran the target model.", stats.num_steps),
            ("num_preemptions", "Times a request lost its blocks.", stats.num_preemptions),
            (
                "prefix_cache_queries",
                "Prompt tokens looked up in the prefix cache.",
                stats.num_prefix_query_tokens,
            ),
            (
                "prefix_cache_hits",
                "Prompt tokens found in the prefix cache.",
                stats.num_prefix_hit_tokens,
            ),
            ("spec_decode_num_drafts", "Passes that verified drafts.", speculation.num_drafts),
            (
                "spec_decode_num_draft_tokens",
                "Draft tokens verified.",
                speculation.num_draft_tokens,
            ),
            (
                "spec_decode_num_accepted_tokens",
                "Draft tokens accepted.",
                speculation.num_accepted_tokens,
            ),
            (
                "spec_decode_num_wasted_tokens",
                "Draft tokens verified in vain.",
                speculation.num_wasted_tokens,
            ),
        ):
            yield self._counter(name, meaning, value)

    def _times(self, stats: EngineStats) -> Iterator[Metric]:
        for name, meaning, value in (
            ("draft_seconds", "Time spent drafting.", stats.draft_seconds),
            ("target_seconds", "Time spent in target passes.", stats.target_seconds),
            (
                "overhead_seconds",
                "Time of steps spent neither drafting nor in the target.",
                stats.overhead_seconds,
            ),
            (
                "controller_seconds",
                "Of the overhead, time spent deciding who drafts how much.",
                stats.controller_seconds,
            ),
            (
                "grammar_compile_seconds",
                "Time spent compiling grammars, in the background.",
                stats.grammar_compile_seconds,
            ),
            (
                "grammar_mask_seconds",
                "Time spent on grammars' masks, on all threads.",
                stats.grammar_mask_seconds,
            ),
            (
                "grammar_mask_wait_seconds",
                "Time that sampling waited for grammars' masks.",
                stats.grammar_mask_wait_seconds,
            ),
        ):
            yield self._counter(name, meaning, value)

    def _counter(self, name: str, meaning: str, value: float) -> Metric:
        counter = CounterMetricFamily(_PREFIX + name, meaning, labels=["model_name"])
        counter.add_metric([self._model_name], value)
        return counter

    def _per_position(self, speculation: SpeculationStats) -> Iterator[Metric]:
        counter = CounterMetricFamily(
            _PREFIX + "spec_decode_num_accepted_tokens_per_pos",
            "Draft tokens accepted at each draft position.",
            labels=["model_name", "position"],
        )
        for position, count in enumerate(speculation.num_accepted_tokens_per_pos):
            counter.add_metric([self._model_name, str(position)], count)
        yield counter

    def _per_drafter(self, stats: EngineStats) -> Iterator[Metric]:
        for name, meaning, read in _BY_DRAFTER:
            counter = CounterMetricFamily(
                f"{_PREFIX}spec_decode_drafter_{name}", meaning, labels=["model_name", "drafter"]
            )
            for drafter, counts in stats.by_drafter.items():
                seconds = stats.drafter_seconds.get(drafter, _NO_SECONDS)
                counter.add_metric([self._model_name, drafter], read(counts, seconds))
            yield counter

    def _per_drafter_position(self, stats: EngineStats) -> Metric:
        counter = CounterMetricFamily(
            _PREFIX + "spec_decode_drafter_accepted_tokens_per_pos",
            "Draft tokens accepted at each draft position, by who drafted them.",
            labels=["model_name", "drafter", "position"],
        )
        for drafter, counts in stats.by_drafter.items():
            for position, count in enumerate(counts.num_accepted_tokens_per_pos):
                counter.add_metric([self._model_name, drafter, str(position)], count)
        return counter
