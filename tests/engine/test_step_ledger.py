"""What steps take is shared out whole: what requests are told adds up to the totals."""

from __future__ import annotations

import time

import msgspec
import pytest

from engine.client.messages import StepOutputs, encoder, from_engine_decoder
from engine.core import EngineCore
from engine.metrics import EngineStats
from engine.request import DRAFT_MODEL, NGRAM, FinishReason, RequestDelta, SpeculationStats
from engine.step import KnownDraft, ModelOutput, RequestOutcome, ScheduledRequest, SchedulerOutput
from engine.step_ledger import Planning, StepClock, StepLedger
from tests.engine.fake_model import make_request
from tests.tiny_models import add, drain, greedy, make_core, random_prompts, tiny_llama

SECONDS = ("draft_seconds", "verify_seconds", "overhead_seconds")


class SetClock(StepClock):
    """A clock that says what it is told."""

    def __init__(self, draft: float, target: float, overhead: float) -> None:
        self.draft_seconds, self.target_seconds, self._overhead = draft, target, overhead

    @property
    def overhead_seconds(self) -> float:
        return self._overhead


def share(name: str, num_tokens: int = 1, drafter: str | None = None) -> ScheduledRequest:
    known = None if drafter in (None, DRAFT_MODEL) else KnownDraft([1], drafter, [0.5])
    return ScheduledRequest(make_request(name, 3), num_tokens, 0, 0, [], known)


def outcome(num_drafts: int = 0, num_accepted: int = 0) -> RequestOutcome:
    sampled = [7] * (num_accepted + 1)
    return RequestOutcome(sampled, num_draft_tokens=num_drafts, num_accepted_tokens=num_accepted)


def book(
    ledger: StepLedger,
    pairs: list[tuple[ScheduledRequest, RequestOutcome]],
    clock: StepClock,
    planning: Planning | None = None,
) -> dict[str, RequestDelta]:
    """Book a step; everybody who sampled is told."""
    shares, outcomes = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    deltas = [RequestDelta(s.request.request_id, o.sampled) for s, o in pairs if o.sampled]
    step = SchedulerOutput(shares), ModelOutput(outcomes)
    ledger.book(*step, deltas, clock, planning or Planning())
    return {delta.request_id: delta for delta in deltas}


def test_a_step_is_shared_by_draft_tokens_rows_and_heads() -> None:
    stats = EngineStats()
    pairs = [
        (share("a", drafter=DRAFT_MODEL), outcome(3, 1)),
        (share("b", drafter=DRAFT_MODEL), outcome(1, 1)),
        (share("c", drafter=NGRAM), outcome(3, 0)),
        (share("d"), outcome()),
    ]
    planning = Planning(0.5, {NGRAM: 0.25}, 1.5)
    told = book(StepLedger(stats), pairs, SetClock(4.0, 11.0, 1.25), planning)
    assert told["a"].report == (3.0, 4.0, 0.25, 1.5)
    assert told["b"].report == (1.0, 2.0, 0.25, 1.5)
    assert told["c"].report == (0.25, 4.0, 0.25, 1.5)
    assert told["d"].report == (0.0, 1.0, 0.25, 1.5)
    assert (stats.draft_seconds, stats.target_seconds, stats.overhead_seconds) == (4.25, 11.0, 1.0)
    assert stats.controller_seconds == 0.25
    model, ngram = stats.drafter_seconds[DRAFT_MODEL], stats.drafter_seconds[NGRAM]
    assert (model.draft, model.verify) == (4.0, 4.0)
    assert (ngram.draft, ngram.verify) == (0.25, 3.0)
    assert stats.by_drafter[DRAFT_MODEL].num_accepted_tokens_per_pos == [2, 0, 0]
    assert stats.by_drafter[NGRAM].num_wasted_tokens == 3


def test_the_sizes_of_steps_are_counted_by_doublings() -> None:
    stats = EngineStats()
    ledger = StepLedger(stats)
    book(ledger, [(share("a", 5), RequestOutcome([]))], SetClock(0.0, 1.0, 0.0))
    pairs = [(share(name, drafter=DRAFT_MODEL), outcome(2, 1)) for name in "abc"]
    book(ledger, pairs, SetClock(0.0, 1.0, 0.0))
    assert (stats.step_requests.counts[:3], stats.step_requests.total) == ([1, 0, 1], 4)
    assert (stats.step_tokens.counts[:5], stats.step_tokens.total) == ([0, 0, 0, 1, 1], 14)
    stats.step_requests.observe(10**9)
    assert stats.step_requests.counts[-1] == 1
    assert sum(stats.step_requests.counts) == 3


def test_drafting_that_came_to_nothing_is_everybodys_by_their_known_tokens() -> None:
    stats = EngineStats()
    pairs = [(share("a"), outcome()), (share("b", num_tokens=3), outcome())]
    told = book(StepLedger(stats), pairs, SetClock(3.0, 4.0, 0.0), Planning(1.0, {NGRAM: 1.0}))
    assert [told[name].report.draft_seconds for name in "ab"] == [1.0, 3.0]
    assert told["a"].report.estimated_speedup is None
    assert stats.drafter_seconds == {}


def test_what_a_prompts_chunks_took_is_told_with_the_first_token() -> None:
    ledger = StepLedger(EngineStats())
    chunk = RequestOutcome([])
    assert book(ledger, [(share("a", 5), chunk)], SetClock(1.0, 2.0, 0.5)) == {}
    told = book(ledger, [(share("a", 2), outcome())], SetClock(1.0, 2.0, 0.5))
    assert told["a"].report[:3] == (2.0, 4.0, 1.0)
    again = book(ledger, [(share("a"), outcome())], SetClock(0.0, 2.0, 0.5))
    assert again["a"].report[:3] == (0.0, 2.0, 0.5)


def test_requests_that_are_gone_leave_nothing_behind() -> None:
    ledger = StepLedger(EngineStats())
    book(ledger, [(share("a", 5), RequestOutcome([]))], SetClock(1.0, 2.0, 0.5))
    ledger.forget(["a", "unknown"])
    assert not ledger._untold


def test_a_request_given_up_while_its_step_is_under_way_leaves_nothing_behind() -> None:
    ledger = StepLedger(EngineStats())
    given_up, other = share("a"), share("b")
    given_up.request.finish(FinishReason.ABORT)
    scheduled = SchedulerOutput([given_up, other])
    delta = RequestDelta("b", [7])
    clock = SetClock(1.0, 2.0, 0.5)
    ledger.book(scheduled, ModelOutput([outcome(), outcome()]), [delta], clock, Planning())
    assert delta.report.verify_seconds == 1.0
    assert not ledger._untold


def told_by(core: EngineCore, num_requests: int = 5) -> dict[str, SpeculationStats]:
    """Run requests of one loop of words, prompts in chunks, and count what they are told."""
    for index, prompt in enumerate(random_prompts(num_requests, low=20)):
        add(core, (prompt * 2)[:50], greedy(30), f"r{index}")
    told = {}
    for name, deltas in drain(core).items():
        stats = told[name] = SpeculationStats()
        for delta in deltas:
            delta.observe(stats, len(delta.new_token_ids))
    assert not core._ledger._untold
    return told


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("speculation", [3, "auto", "off"])
@pytest.mark.parametrize("drafters", ["ngram,in memory", "in memory", "suffix"])
def test_what_requests_are_told_adds_up_to_the_totals(
    drafters: str, speculation: int | str
) -> None:
    draft = tiny_llama(1) if "memory" in drafters else None
    options = {"max_num_batched_tokens": 48, "max_num_seqs": 4, "speculation": speculation}
    core = make_core(tiny_llama(), draft, drafters=drafters, **options)
    started = time.perf_counter()
    told = told_by(core)
    seconds = time.perf_counter() - started
    stats, together = core.stats(), SpeculationStats()
    for own in told.values():
        together.add(own)
    for name in SECONDS:
        assert getattr(together, name) == pytest.approx(getattr(stats.speculation, name))
        assert all(getattr(own, name) >= 0.0 for own in told.values())
    assert 0.0 < sum(getattr(together, name) for name in SECONDS) < seconds
    assert together.by_drafter == stats.by_drafter
    assert together.num_wasted_tokens == stats.speculation.num_wasted_tokens
    assert 0.0 <= stats.controller_seconds <= stats.overhead_seconds
    assert sum(own.draft for own in stats.drafter_seconds.values()) <= stats.draft_seconds
    assert (together.estimated_speedup is not None) == (speculation == "auto")


def test_reports_travel_in_few_bytes() -> None:
    delta = RequestDelta("chatcmpl-0123456789abcdef-0", [17])
    bare = len(encoder.encode(delta))
    delta.report = delta.report._replace(draft_seconds=0.1, estimated_speedup=1.2)
    message = encoder.encode(StepOutputs([delta], EngineStats()))
    assert len(encoder.encode(delta)) - bare <= 8
    assert len(msgspec.msgpack.encode(delta.report)) <= 40
    decoded = from_engine_decoder.decode(message)
    assert isinstance(decoded, StepOutputs)
    assert decoded.deltas[0].report == delta.report
