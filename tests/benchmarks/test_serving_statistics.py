"""Numbers of a run are those of its records, whatever the machine does."""

from __future__ import annotations

import json

import pytest

from benchmarks.rounds import over_rounds, percentile, weighted_percentile
from benchmarks.serving.http_stream import Reply
from benchmarks.serving.records import Record, read_reply
from benchmarks.serving.statistics import Terms, errors_by_kind, summarise


def record(number: int = 0, *, times: list[float], tokens: list[int], **values: object) -> Record:
    defaults: dict[str, object] = {
        "due_s": 0.0,
        "sent_s": 0.0,
        "end_s": times[-1] if times else 1.0,
        "asked_tokens": sum(tokens),
        "num_output_tokens": sum(tokens),
        "num_prompt_tokens": 10,
        "event_times_s": times,
        "event_tokens": tokens,
    }
    return Record(number=number, **{**defaults, **values})  # type: ignore[arg-type]


def reply(*events: object, end_s: float = 9.0, failure: str | None = None) -> Reply:
    """Give a reply whose events come a second apart, the first after one second."""
    data = [e if isinstance(e, bytes) else json.dumps(e).encode() for e in events]
    stamped = [(float(second), d) for second, d in enumerate(data, start=1)]
    return Reply(0.0, end_s, 200, stamped, failure=failure)


def says(text: str, tokens: int | None = None, reason: str | None = None) -> dict[str, object]:
    usage = None if tokens is None else {"completion_tokens": tokens, "prompt_tokens": 4}
    return {"choices": [{"delta": {"content": text}, "finish_reason": reason}], "usage": usage}


def test_percentiles_interpolate_and_weigh() -> None:
    assert percentile([], 50) is None
    assert percentile([3.0], 99) == 3.0
    assert percentile([4.0, 1.0, 2.0, 3.0], 50) == 2.5
    assert percentile([float(n) for n in range(101)], 90) == 90.0
    assert weighted_percentile([], 50) is None
    assert weighted_percentile([(5.0, 1.0), (1.0, 3.0)], 50) == 1.0
    assert weighted_percentile([(5.0, 1.0), (1.0, 3.0)], 76) == 5.0


def test_times_and_rates_follow_from_the_events() -> None:
    first = record(0, times=[0.1, 0.3, 0.5], tokens=[1, 4, 2])
    second = record(1, times=[0.3, 0.6], tokens=[1, 2], end_s=2.0, num_target_passes=2)
    numbers = summarise([first, second], Terms())
    assert numbers["tokens_per_s"] == pytest.approx(10 / 2.0)
    assert numbers["requests_per_s"] == pytest.approx(1.0)
    assert numbers["ttft_ms_p50"] == pytest.approx(200.0)
    # 0.4 s for 6 tokens, and 0.3 s for 2.
    assert numbers["tpot_ms_p50"] == pytest.approx((400 / 6 + 150) / 2)
    assert numbers["itl_per_event_ms_p50"] == pytest.approx(200.0)
    # Per token: 4 x 50 ms, 2 x 100 ms, 2 x 150 ms.
    assert numbers["itl_per_token_ms_p50"] == pytest.approx(50.0)
    assert numbers["itl_per_token_ms_p90"] == pytest.approx(150.0)
    assert numbers["tokens_per_event"] == pytest.approx(2.0)
    # Only one of two told its passes, so nobody's are told.
    assert numbers["tokens_per_target_pass"] is None


def test_waiting_to_be_sent_counts_in_an_open_loop() -> None:
    late = record(times=[3.0, 4.0], tokens=[1, 1], due_s=1.0, sent_s=2.5, end_s=4.0)
    numbers = summarise([late], Terms())
    assert numbers["ttft_ms_p50"] == pytest.approx(2000.0)
    assert numbers["e2e_ms_p50"] == pytest.approx(3000.0)
    assert numbers["late_ms_p99"] == pytest.approx(1500.0)


def test_goodput_counts_answers_inside_both_limits_and_no_failures() -> None:
    records = [
        record(0, times=[0.1, 0.2], tokens=[1, 1], end_s=2.0),
        record(1, times=[0.9, 1.0], tokens=[1, 1]),
        record(2, times=[0.1, 0.9], tokens=[1, 1]),
        record(3, times=[0.1, 0.2], tokens=[1, 1], failure="timeout"),
    ]
    numbers = summarise(records, Terms(slo_ttft_ms=500, slo_tpot_ms=500))
    assert numbers["goodput_per_s"] == pytest.approx(0.5)
    assert numbers["slo_share"] == pytest.approx(0.25)
    assert errors_by_kind(records) == {"timeout": 1}
    assert "goodput_per_s" not in summarise(records, Terms())


def test_price_and_cache_hits_are_told() -> None:
    hit = record(times=[0.5, 1.0], tokens=[500, 500], num_cached_tokens=5)
    numbers = summarise([hit], Terms(price_per_hour=3.6))
    assert numbers["cost_per_million_tokens"] == pytest.approx(1.0)
    assert numbers["cached_share"] == pytest.approx(0.5)


def test_steady_rate_leaves_out_the_filling_and_the_tail() -> None:
    times = [[1.0, 2.0], [1.0, 2.0], [3.0, 9.0]]
    sent = [0.0, 0.5, 2.5]
    records = [
        record(number, times=own, tokens=[2, 2], sent_s=begin, due_s=begin)
        for number, (own, begin) in enumerate(zip(times, sent, strict=True))
    ]
    numbers = summarise(records, Terms(concurrency=2))
    # Two streams were busy from 0.5 s to 2.5 s, and got 8 tokens.
    assert numbers["steady_tokens_per_s"] == pytest.approx(4.0)
    assert summarise(records, Terms(concurrency=3))["steady_tokens_per_s"] is None


def test_tokens_are_counted_by_usage_never_by_events() -> None:
    told = read_reply(
        0, 0.0, 6, reply(says("", 0), says("a", 1), says("bc", 4), says("d", 6), b"[DONE]")
    )
    assert (told.num_output_tokens, told.event_times_s) == (6, [2.0, 3.0, 4.0])
    assert told.event_tokens == [1, 3, 2]
    assert told.failure is None
    usage = {"choices": [], "usage": {"completion_tokens": 6, "prompt_tokens": 4}}
    whole = read_reply(0, 0.0, 6, reply(says("a"), says("b"), usage, b"[DONE]"))
    assert (whole.num_output_tokens, whole.event_tokens) == (6, [])
    assert whole.tokens_by_event == [3.0, 3.0]
    silent = read_reply(0, 0.0, 6, reply(says("a"), b"[DONE]"))
    assert summarise([silent], Terms())["tokens_per_s"] is None


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (reply(says("a"), failure="timeout"), "timeout"),
        (reply(says("a"), failure="broken stream"), "broken stream"),
        (reply(says("a", 1, "length"), failure="broken stream"), None),
        (reply(says("a")), "broken stream"),
        (reply(says("a"), {"error": {"message": "x"}}), "error in stream"),
        (reply(says("a"), b"{"), "unreadable event"),
        (reply(), "no stream"),
        (Reply(0.0, 1.0, 429, body=b"{}"), "HTTP 429"),
        (Reply(0.0, 1.0, failure="connection"), "connection"),
    ],
)
def test_failures_have_kinds(answer: Reply, kind: str | None) -> None:
    assert read_reply(0, 0.0, 2, answer).failure == kind


def test_rounds_give_median_and_range_where_all_have_the_number() -> None:
    rounds = [{"a": 3.0, "b": 1.0}, {"a": 1.0, "b": None}, {"a": 2.0, "b": 1.0}]
    assert over_rounds(rounds) == {"a": (2.0, 1.0, 3.0), "b": None}
