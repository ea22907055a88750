"""From records of requests to the numbers of a point; it knows no clock, server or tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.rounds import Numbers, percentile, weighted_percentile
from benchmarks.serving.records import Record

PERCENTILES = (50, 90, 99)
_MS = 1000.0
_MILLION = 1e6
_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a run is held against.

    Attributes:
        slo_ttft_ms: time to the first token that is good enough; None = any.
        slo_tpot_ms: time per token likewise.
        price_per_hour: of the machine, in any currency; None = not told.
        concurrency: streams of a closed loop; None = an open one.
    """

    slo_ttft_ms: float | None = None
    slo_tpot_ms: float | None = None
    price_per_hour: float | None = None
    concurrency: int | None = None

    @property
    def has_slo(self) -> bool:
        """Whether there is anything to meet."""
        return self.slo_ttft_ms is not None or self.slo_tpot_ms is not None

    def is_met(self, record: Record) -> bool:
        """Whether an answer came whole and in time."""
        return (
            record.failure is None
            and record.ttft_s is not None
            and _is_within(record.ttft_s, self.slo_ttft_ms)
            and _is_within(record.tpot_s, self.slo_tpot_ms)
        )


def summarise(records: Sequence[Record], terms: Terms) -> Numbers:
    """Give the numbers of one run."""
    good = [record for record in records if record.failure is None]
    begin = min((record.due_s for record in records), default=0.0)
    seconds = max((record.end_s for record in records), default=0.0) - begin
    tokens = _total([record.num_output_tokens for record in good])
    numbers: Numbers = {
        "seconds": seconds,
        "requests": float(len(records)),
        "errors": float(len(records) - len(good)),
        "requests_per_s": _over(len(good), seconds),
        "tokens_per_s": _over(tokens, seconds),
        "steady_tokens_per_s": _steady_rate(records, terms.concurrency),
    }
    numbers |= _latencies(good)
    numbers |= _counts(good)
    if terms.has_slo:
        met = sum(map(terms.is_met, records))
        numbers["goodput_per_s"] = _over(met, seconds)
        numbers["slo_share"] = _over(met, len(records))
    if terms.price_per_hour is not None:
        per_hour = None if tokens is None or not seconds else tokens / seconds * _HOUR_S
        numbers["cost_per_million_tokens"] = _over(terms.price_per_hour * _MILLION, per_hour)
    return numbers


def errors_by_kind(records: Sequence[Record]) -> dict[str, int]:
    """Count failures, the most frequent kind first."""
    kinds = Counter(record.failure for record in records if record.failure is not None)
    return dict(kinds.most_common())


def _latencies(good: Sequence[Record]) -> Numbers:
    gaps = [pair for record in good for pair in _gaps(record)]
    plain = {
        "ttft_ms": [value for r in good if (value := r.ttft_s) is not None],
        "tpot_ms": [value for r in good if (value := r.tpot_s) is not None],
        "itl_per_event_ms": [gap for gap, _ in gaps],
        "e2e_ms": [r.e2e_s for r in good],
        "late_ms": [r.sent_s - r.due_s for r in good],
    }
    numbers: Numbers = {}
    for name, values in plain.items():
        for percent in PERCENTILES:
            numbers[f"{name}_p{percent}"] = _in_ms(percentile(values, percent))
    per_token = [(gap / count, count) for gap, count in gaps if count > 0]
    for percent in PERCENTILES:
        value = weighted_percentile(per_token, percent)
        numbers[f"itl_per_token_ms_p{percent}"] = _in_ms(value)
    return numbers


def _gaps(record: Record) -> list[tuple[float, float]]:
    """Give the time in front of each event but the first, and the tokens that it brought."""
    times = record.event_times_s
    gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
    return list(zip(gaps, record.tokens_by_event[1:], strict=True))


def _counts(good: Sequence[Record]) -> Numbers:
    tokens = _total([record.num_output_tokens for record in good])
    prompts = _total([record.num_prompt_tokens for record in good])
    cached = _total([record.num_cached_tokens for record in good])
    passes = _total([record.num_target_passes for record in good])
    return {
        "prompt_tokens_mean": _over(prompts, len(good)),
        "output_tokens_mean": _over(tokens, len(good)),
        "tokens_per_event": _over(tokens, sum(len(record.event_times_s) for record in good)),
        "tokens_per_target_pass": _over(tokens, passes),
        "cached_share": _over(cached, prompts),
    }


def _steady_rate(records: Sequence[Record], concurrency: int | None) -> float | None:
    """Give tokens/s while all streams of a closed loop were busy; None where they never were."""
    if concurrency is None or len(records) <= concurrency:
        return None
    sent = sorted(record.sent_s for record in records)
    begin, end = sent[concurrency - 1], sent[-1]
    if end <= begin or any(r.failure is None and r.num_output_tokens is None for r in records):
        return None
    tokens = sum(
        count
        for record in records
        for time_s, count in zip(record.event_times_s, record.tokens_by_event, strict=True)
        if begin < time_s <= end
    )
    return tokens / (end - begin)


def _total(values: Sequence[int | None]) -> int | None:
    """Add up; None where one is missing, or there are none."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _over(value: float | None, by: float | None) -> float | None:
    return None if value is None or not by else value / by


def _in_ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * _MS


def _is_within(seconds: float | None, limit_ms: float | None) -> bool:
    return limit_ms is None or seconds is None or seconds * _MS <= limit_ms
