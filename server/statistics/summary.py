"""What happened between two readings, in the words of `/statistics`."""

from __future__ import annotations

from dataclasses import dataclass

from server.protocol.statistics import DraftedTokens, Percentiles, Statistics
from server.served import Served
from server.statistics.percentiles import percentile, since
from server.statistics.reading import Reading

_PREFIX = "outdraft:"
_DRAFTED = _PREFIX + "spec_decode_drafter_draft_tokens_total"
_ACCEPTED = _PREFIX + "spec_decode_drafter_accepted_tokens_total"
_DRAFTED_AT = _PREFIX + "spec_decode_num_draft_tokens_per_pos_total"
_ACCEPTED_AT = _PREFIX + "spec_decode_num_accepted_tokens_per_pos_total"
_SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Span:
    """Two readings of one server.

    Attributes:
        before: the earlier.
        now: the later.
    """

    before: Reading
    now: Reading

    @property
    def seconds(self) -> float:
        """Time between them."""
        return self.now.moment - self.before.moment

    def growth(self, name: str) -> float:
        """Give by how much a counter grew; an engine that was started anew begins at 0."""
        return _growth(self.before.totals[name], self.now.totals[name])

    def growth_by_label(self, name: str) -> dict[str, float]:
        """Give the same by the value of the counter's label."""
        before = self.before.by_label.get(name, {})
        now = self.now.by_label.get(name, {})
        return {label: _growth(before.get(label, 0.0), value) for label, value in now.items()}

    def per_second(self, name: str) -> float:
        """Give how fast a counter grew."""
        return self.growth(name) / self.seconds if self.seconds > 0.0 else 0.0

    def ratio(self, above: str, below: str) -> float | None:
        """Give the growth of one counter over that of another."""
        return _ratio(self.growth(above), self.growth(below))

    def milliseconds(self, histogram: str) -> Percentiles | None:
        """Give percentiles of what a histogram of seconds was told between the readings."""
        found = since(self.before.buckets[histogram], self.now.buckets[histogram])
        p50, p90, p99 = (percentile(found, share) for share in (0.5, 0.9, 0.99))
        if p50 is None or p90 is None or p99 is None:
            return None
        return {"p50": 1000.0 * p50, "p90": 1000.0 * p90, "p99": 1000.0 * p99}


def summarise(
    served: Served, last: Span, minute: Span, *, interval_s: float, price_per_hour: float | None
) -> Statistics:
    """Describe the last interval.

    Args:
        served: whose readings they are.
        last: the interval.
        minute: the same and what was before it, for latencies.
        interval_s: its length as it was asked for.
        price_per_hour: see `ServerConfig`.
    """
    totals = last.now.totals
    engine, speculation = served.engine, served.config.speculation
    num_blocks = engine.info.num_blocks - 1 if served.is_ready else 0
    tokens_per_second = last.per_second(_PREFIX + "generation_tokens_total")
    limit = speculation.max_draft_tokens
    by_position = _by_position(last)
    return {
        "time": last.now.time,
        "interval_s": interval_s,
        "status": served.status,
        "model": served.name,
        "draft": speculation.draft,
        "speculation": "auto" if limit is None else str(limit or "off"),
        "tokens_per_second": tokens_per_second,
        "prompt_tokens_per_second": last.per_second(_PREFIX + "prompt_tokens_total"),
        "tokens_per_target_pass": last.ratio(
            _PREFIX + "generation_tokens_total", _PREFIX + "spec_decode_num_target_passes_total"
        ),
        "draft_tokens_per_pass": last.ratio(
            _PREFIX + "spec_decode_num_draft_tokens_total",
            _PREFIX + "spec_decode_num_target_passes_total",
        ),
        "acceptance_rate": last.ratio(
            _PREFIX + "spec_decode_num_accepted_tokens_total",
            _PREFIX + "spec_decode_num_draft_tokens_total",
        ),
        "tokens_per_step": last.ratio(
            _PREFIX + "iteration_tokens_total_sum", _PREFIX + "iteration_tokens_total_count"
        ),
        "acceptance_by_position": [c["accepted"] / c["proposed"] for c in by_position],
        "by_position": by_position,
        "by_drafter": _drafted(last, _DRAFTED, _ACCEPTED),
        "estimated_speedup": _speedup(served, last),
        "requests_running": int(totals[_PREFIX + "num_requests_running"]),
        "requests_waiting": int(totals[_PREFIX + "num_requests_waiting"]),
        "kv_blocks_used": round(totals[_PREFIX + "kv_cache_usage_perc"] * num_blocks),
        "kv_blocks_total": num_blocks,
        "prefix_hit_rate": last.ratio(
            _PREFIX + "prefix_cache_hits_total", _PREFIX + "prefix_cache_queries_total"
        ),
        "ttft_ms": minute.milliseconds(_PREFIX + "time_to_first_token_seconds"),
        "itl_ms": minute.milliseconds(_PREFIX + "inter_token_latency_seconds"),
        "e2e_ms": minute.milliseconds(_PREFIX + "e2e_request_latency_seconds"),
        "preemptions": int(last.growth(_PREFIX + "num_preemptions_total")),
        "price_per_hour": price_per_hour,
        "cost_per_million_tokens": _cost(price_per_hour, tokens_per_second),
        "totals": dict(totals),
    }


def _by_position(last: Span) -> list[DraftedTokens]:
    """Count at each draft position, as far as drafts went."""
    counts = _drafted(last, _DRAFTED_AT, _ACCEPTED_AT).values()
    return [count for count in counts if count["proposed"]]


def _drafted(last: Span, drafted_name: str, accepted_name: str) -> dict[str, DraftedTokens]:
    drafted, accepted = last.growth_by_label(drafted_name), last.growth_by_label(accepted_name)
    return {
        label: {"proposed": int(count), "accepted": int(accepted[label])}
        for label, count in drafted.items()
    }


def _speedup(served: Served, last: Span) -> float | None:
    """Give what the last step's drafts promised, where a controller weighed any."""
    speculation = served.config.speculation
    is_weighed = speculation.is_auto and bool(speculation.drafters)
    if not is_weighed or not last.growth(_PREFIX + "engine_steps_total"):
        return None
    return last.now.totals[_PREFIX + "estimated_speedup"]


def _cost(price_per_hour: float | None, tokens_per_second: float) -> float | None:
    if price_per_hour is None or not tokens_per_second:
        return None
    return 1e6 * price_per_hour / (_SECONDS_PER_HOUR * tokens_per_second)


def _growth(before: float, now: float) -> float:
    return now - before if now >= before else now


def _ratio(above: float, below: float) -> float | None:
    return above / below if below else None
