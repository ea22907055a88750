"""The engine's own counts for Prometheus, read from its last message at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from engine.metrics import Distribution, DrafterSeconds, EngineStats
from engine.request import DraftCounts, SpeculationStats

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
_BY_POSITION: tuple[tuple[str, str, Callable[[DraftCounts], list[int]]], ...] = (
    (
        "draft_tokens",
        "Draft tokens verified at each draft position",
        lambda c: c.num_draft_tokens_per_pos,
    ),
    (
        "accepted_tokens",
        "Draft tokens accepted at each draft position",
        lambda c: c.num_accepted_tokens_per_pos,
    ),
)


class EngineMetrics(Collector):
    """Reads the engine's counters when Prometheus asks.

    Args:
        prefix: of every name.
        model_name: value of the label `model_name`.
        read_stats: gives the engine's counters.
    """

    def __init__(self, prefix: str, model_name: str, read_stats: Callable[[], EngineStats]) -> None:
        self._prefix = prefix
        self._model_name = model_name
        self._read_stats = read_stats

    def collect(self) -> Iterable[Metric]:
        """Give the counts; see `prometheus_client`."""
        stats = self._read_stats()
        yield from self._gauges(stats)
        yield from self._counters(stats)
        yield from self._times(stats)
        yield from self._sizes(stats)
        yield from self._per_position(stats.speculation)
        yield from self._per_drafter(stats)
        yield from self._per_drafter_position(stats)

    def _gauges(self, stats: EngineStats) -> Iterator[Metric]:
        for name, meaning, value in (
            ("num_requests_running", "Requests that hold KV cache blocks.", stats.num_running),
            ("num_requests_waiting", "Requests in the queue.", stats.num_waiting),
            (
                "num_background_running",
                "Background work that the last step computed.",
                stats.num_background_running,
            ),
            (
                "num_background_paused",
                "Background work that holds KV cache blocks and was not in the last step.",
                stats.num_background_paused,
            ),
            (
                "num_background_waiting",
                "Background work in the queue.",
                stats.num_background_waiting,
            ),
            ("kv_cache_usage_perc", "KV cache blocks in use, 0 to 1.", stats.kv_cache_usage),
            (
                "estimated_speedup",
                "Tokens per second that the last step's drafts promised, over those of none.",
                stats.estimated_speedup,
            ),
            ("num_graphs", "Passes recorded as CUDA graphs.", stats.num_graphs),
            ("graph_bytes", "Device memory that recorded passes hold.", stats.graph_bytes),
        ):
            gauge = GaugeMetricFamily(self._prefix + name, meaning, labels=["model_name"])
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
            (
                "spec_decode_num_target_passes",
                "Passes of requests that emitted tokens, with drafts or without.",
                speculation.num_target_passes,
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
        counter = CounterMetricFamily(self._prefix + name, meaning, labels=["model_name"])
        counter.add_metric([self._model_name], value)
        return counter

    def _sizes(self, stats: EngineStats) -> Iterator[Metric]:
        for name, meaning, sizes in (
            ("iteration_requests", "Requests that each step computed.", stats.step_requests),
            (
                "iteration_tokens_total",
                "Tokens that each step computed, drafts included.",
                stats.step_tokens,
            ),
        ):
            histogram = HistogramMetricFamily(self._prefix + name, meaning, labels=["model_name"])
            histogram.add_metric([self._model_name], _buckets(sizes), sizes.total)
            yield histogram

    def _per_position(self, speculation: SpeculationStats) -> Iterator[Metric]:
        for name, meaning, read in _BY_POSITION:
            counter = CounterMetricFamily(
                f"{self._prefix}spec_decode_num_{name}_per_pos",
                f"{meaning}.",
                labels=["model_name", "position"],
            )
            for position, count in enumerate(read(speculation)):
                counter.add_metric([self._model_name, str(position)], count)
            yield counter

    def _per_drafter(self, stats: EngineStats) -> Iterator[Metric]:
        for name, meaning, read in _BY_DRAFTER:
            counter = CounterMetricFamily(
                f"{self._prefix}spec_decode_drafter_{name}",
                meaning,
                labels=["model_name", "drafter"],
            )
            for drafter, counts in stats.by_drafter.items():
                seconds = stats.drafter_seconds.get(drafter, _NO_SECONDS)
                counter.add_metric([self._model_name, drafter], read(counts, seconds))
            yield counter

    def _per_drafter_position(self, stats: EngineStats) -> Iterator[Metric]:
        for name, meaning, read in _BY_POSITION:
            counter = CounterMetricFamily(
                f"{self._prefix}spec_decode_drafter_{name}_per_pos",
                f"{meaning}, by who drafted them.",
                labels=["model_name", "drafter", "position"],
            )
            for drafter, counts in stats.by_drafter.items():
                for position, count in enumerate(read(counts)):
                    counter.add_metric([self._model_name, drafter, str(position)], count)
            yield counter


def _buckets(sizes: Distribution) -> list[tuple[str, float]]:
    """Give the counts of sizes as Prometheus has them: each with all smaller ones."""
    bounds = [str(2**place) for place in range(len(sizes.counts) - 1)]
    return list(zip([*bounds, "+Inf"], accumulate(sizes.counts), strict=True))
