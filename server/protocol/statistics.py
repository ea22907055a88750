"""What `/statistics` streams: rates of the last interval, latencies of the last minute, totals."""

from __future__ import annotations

from typing import NotRequired

from typing_extensions import TypedDict

from engine.client.supervision import EngineState


class Percentiles(TypedDict):
    """How long something took, in milliseconds, interpolated in the buckets of `/metrics`."""

    p50: float
    p90: float
    p99: float


class DraftedTokens(TypedDict):
    """Draft tokens that were verified, and those of them that were accepted."""

    proposed: int
    accepted: int


class Statistics(TypedDict):
    """What an engine did in the last interval.

    Shares and means are null where nothing happened that they could be taken of. `ttft_ms`,
    `itl_ms` and `e2e_ms` are of the last minute in which somebody listened. `totals`, absent in a
    history, are the counters and gauges of `/metrics` by name, with the labels that tell one from
    another. Money is in the currency of the setting `price_per_hour`.
    """

    time: float
    interval_s: float
    status: EngineState
    model: str
    draft: str | None
    speculation: str
    tokens_per_second: float
    prompt_tokens_per_second: float
    tokens_per_target_pass: float | None
    draft_tokens_per_pass: float | None
    acceptance_rate: float | None
    tokens_per_step: float | None
    acceptance_by_position: list[float]
    by_position: list[DraftedTokens]
    by_drafter: dict[str, DraftedTokens]
    estimated_speedup: float | None
    requests_running: int
    requests_waiting: int
    kv_blocks_used: int
    kv_blocks_total: int
    prefix_hit_rate: float | None
    ttft_ms: Percentiles | None
    itl_ms: Percentiles | None
    e2e_ms: Percentiles | None
    preemptions: int
    price_per_hour: float | None
    cost_per_million_tokens: float | None
    totals: NotRequired[dict[str, float]]


class StatisticsHistory(TypedDict):
    """The first event of a stream: what was told in the ten minutes before, the oldest first."""

    interval_s: float
    samples: list[Statistics]
