"""A request ends for one reason, and its speculation counts add up."""

from __future__ import annotations

import pytest

from engine.request import (
    NGRAM,
    SUFFIX,
    FinishReason,
    PassReport,
    Request,
    RequestStatus,
    SpeculationStats,
)
from engine.sampling_params import SamplingParams

EOS = 2


def request(params: SamplingParams | None = None, *, max_total_tokens: int = 100) -> Request:
    """Give a request of three prompt tokens."""
    return Request(
        request_id="r",
        prompt_token_ids=[5, 6, 7],
        params=params or SamplingParams(),
        eos_token_ids=frozenset({EOS}),
        max_total_tokens=max_total_tokens,
    )


def test_tokens_begin_as_a_copy_of_the_prompt() -> None:
    r = request()
    r.append([8])
    assert r.prompt_token_ids == [5, 6, 7]
    assert r.token_ids == [5, 6, 7, 8]
    assert (r.num_prompt_tokens, r.num_output_tokens, r.num_tokens) == (3, 1, 4)
    assert not r.is_finished


def test_empty_prompt_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="at least one prompt token"):
        Request(request_id="r", prompt_token_ids=[], params=SamplingParams())


def test_end_of_sequence_stops_and_cuts_the_rest() -> None:
    r = request()
    assert r.append([8, EOS, 9]) == [8, EOS]
    assert r.status is RequestStatus.FINISHED
    assert (r.finish_reason, r.stop_reason) == (FinishReason.STOP, None)
    assert r.token_ids == [5, 6, 7, 8, EOS]


def test_stop_token_says_which_one_it_was() -> None:
    r = request(SamplingParams(stop_token_ids=(8, 9)))
    assert r.append([9, 8]) == [9]
    assert (r.finish_reason, r.stop_reason) == (FinishReason.STOP, 9)


def test_ignored_end_of_sequence_is_a_token_like_others() -> None:
    r = request(SamplingParams(ignore_eos=True))
    assert r.append([EOS, 8]) == [EOS, 8]
    assert not r.is_finished


def test_stop_token_ends_even_when_end_of_sequence_is_ignored() -> None:
    r = request(SamplingParams(ignore_eos=True, stop_token_ids=(EOS,)))
    assert r.append([EOS, 8]) == [EOS]
    assert r.stop_reason == EOS


def test_nothing_stops_before_min_tokens() -> None:
    r = request(SamplingParams(min_tokens=3, stop_token_ids=(9,)))
    assert r.append([EOS, 9, 9, 8]) == [EOS, 9, 9]
    assert r.stop_reason == 9


def test_length_limit_cuts_inside_an_accepted_draft() -> None:
    r = request(max_total_tokens=5)
    assert r.append([8, 9, 10]) == [8, 9]
    assert r.finish_reason is FinishReason.LENGTH


def test_stop_on_the_last_allowed_token_is_a_stop() -> None:
    r = request(max_total_tokens=4)
    r.append([EOS])
    assert r.finish_reason is FinishReason.STOP


def test_observed_passes_are_counted_per_position() -> None:
    stats = SpeculationStats()
    stats.observe(num_draft_tokens=0, num_accepted=0, num_emitted=1)
    stats.observe(num_draft_tokens=2, num_accepted=1, num_emitted=2)
    stats.observe(num_draft_tokens=4, num_accepted=4, num_emitted=5)
    assert (stats.num_target_passes, stats.num_drafts) == (3, 2)
    assert (stats.num_draft_tokens, stats.num_accepted_tokens) == (6, 5)
    assert stats.num_draft_tokens_per_pos == [2, 2, 1, 1]
    assert stats.num_accepted_tokens_per_pos == [2, 1, 1, 1]
    assert stats.tokens_per_target_pass == pytest.approx(8 / 3)
    assert stats.acceptance_rate == pytest.approx(5 / 6)


def test_no_passes_have_no_rates() -> None:
    assert SpeculationStats().tokens_per_target_pass == 0.0
    assert SpeculationStats().acceptance_rate == 0.0


def test_stats_of_requests_add_up_to_those_of_the_run() -> None:
    first, second, run = SpeculationStats(), SpeculationStats(), SpeculationStats()
    first.observe(3, 2, 3, NGRAM)
    first.observe_report(PassReport(0.25, 0.5, 1.0, 1.5))
    second.observe(1, 1, 2, NGRAM)
    second.observe(5, 0, 1, SUFFIX)
    run.add(first)
    run.add(second)
    together = SpeculationStats()
    for counts in ((3, 2, 3, NGRAM), (1, 1, 2, NGRAM), (5, 0, 1, SUFFIX)):
        together.observe(*counts)
    together.observe_report(PassReport(0.25, 0.5, 1.0, 1.5))
    assert run == together


def test_drafts_are_counted_by_who_made_them() -> None:
    stats = SpeculationStats()
    stats.observe(3, 2, 3, NGRAM)
    stats.observe(4, 0, 1, SUFFIX)
    stats.observe(0, 0, 1)
    assert (stats.num_drafts, stats.num_wasted_tokens) == (2, 5)
    assert stats.by_drafter.keys() == {NGRAM, SUFFIX}
    assert stats.by_drafter[NGRAM].num_accepted_tokens_per_pos == [1, 1, 0]
    assert stats.by_drafter[SUFFIX].num_wasted_tokens == 4


def test_an_expected_speed_up_is_the_mean_of_the_steps_that_were_weighed() -> None:
    stats = SpeculationStats()
    assert stats.estimated_speedup is None
    for estimate in (1.0, None, 2.0):
        stats.observe_report(PassReport(estimated_speedup=estimate))
    assert stats.estimated_speedup == 1.5
