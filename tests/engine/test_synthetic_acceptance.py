"""Synthetic acceptance: drafts are accepted at the rates that were asked for, whatever they are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from engine.config import EngineConfig, ModelConfig, SpeculationConfig
from engine.config_files import resolve
from engine.core import EngineCore
from engine.errors import ConfigError, InvalidRequestError
from engine.request import PREDICTION, FinishReason, Request, RequestDelta
from engine.sampling_params import SamplingParams
from engine.speculative.synthetic_acceptance import SyntheticAcceptance
from engine.speculative.verifier import Verification, count_equal
from engine.structured_output import StructuredOutput
from tests.doubles import count_speculation
from tests.tiny_models import (
    add,
    drain,
    generate,
    greedy,
    make_core,
    random_prompts,
    seeded,
    tiny_llama,
    tokens_of,
)

PROMPTS = random_prompts(4)
NUM_TOKENS = 20
# A fair count is further from its mean than so many deviations less than once in a million runs.
MAX_DEVIATIONS = 5.0


def synthetic_core(rates: str, *, good_draft: bool = False, **options: object) -> EngineCore:
    """A target with a random draft, unless it is to be the target's twin."""
    draft = tiny_llama(0 if good_draft else 1)
    return make_core(tiny_llama(), draft, synthetic_acceptance=rates, **options)


def request(seed: int = 11, num_tokens: int = 3, choice_index: int = 0) -> Request:
    params = SamplingParams(seed=seed)
    return Request("a", [1] * num_tokens, params, choice_index=choice_index)


def verify_one(
    rates: Sequence[float], asked: Request, sampled: list[int], drafts: list[int]
) -> Verification:
    """Verify one request's drafts."""
    verifier = SyntheticAcceptance(rates)
    return verifier.verify(torch.tensor(sampled), torch.tensor([drafts]), [len(drafts)], [asked])


def deviations(passes: Sequence[tuple[int, int]], rates: Sequence[float]) -> list[float]:
    """Compare what was accepted at each place with its rate, in standard deviations.

    Args:
        passes: drafts, and how many of them were accepted.
        rates: what is expected at each place, above 0 and below 1.
    """
    found = []
    for place, rate in enumerate(rates):
        tried = [n for num_drafts, n in passes if num_drafts > place and n >= place]
        assert len(tried) > 50, "too few to tell"
        succeeded = sum(n > place for n in tried)
        scale = (len(tried) * rate * (1.0 - rate)) ** 0.5
        found.append(abs(succeeded - len(tried) * rate) / scale)
    return found


def drawn_passes(rates: Sequence[float], num_drafts: int = 4) -> list[tuple[int, int]]:
    """Verify many chains: over seeds, choices and positions."""
    passes = []
    verifier = SyntheticAcceptance(rates)
    for seed in range(100):
        for choice in (0, 1):
            for num_tokens in range(3, 403, num_drafts):
                asked = request(seed, num_tokens, choice)
                passes.append((num_drafts, verifier.hindsight(asked, num_tokens, [0] * num_drafts)))
    return passes


def served_passes(core: EngineCore) -> list[tuple[int, int]]:
    """Generate, and give each pass's drafts and how many were accepted."""
    for index, prompt in enumerate(PROMPTS):
        add(core, prompt, seeded(400, seed=index), f"r{index}")
    deltas = [delta for ours in drain(core).values() for delta in ours]
    return [(d.num_draft_tokens, d.num_accepted_tokens) for d in deltas if d.num_draft_tokens]


def test_accepted_drafts_are_emitted_and_the_targets_token_behind_them() -> None:
    sampled, drafts = [5, 6, 7], [8, 9]
    assert verify_one([1.0], request(), sampled, drafts) == Verification([2], [[8, 9, 7]])
    assert verify_one([1.0, 0.0], request(), sampled, drafts) == Verification([1], [[8, 6]])
    assert verify_one([0.0], request(), sampled, drafts) == Verification([0], [[5]])


def test_each_request_has_its_own_rows_and_drafts() -> None:
    requests = [request(), request(), request()]
    drafts = torch.tensor([[1, 2], [0, 0], [3, 0]])
    sampled = torch.tensor([10, 11, 12, 20, 30, 31])
    found = SyntheticAcceptance([1.0]).verify(sampled, drafts, [2, 0, 1], requests)
    assert found == Verification([2, 0, 1], [[1, 2, 12], [20], [3, 31]])


def test_a_pass_without_drafts_emits_the_targets_tokens() -> None:
    nothing = torch.zeros(2, 0, dtype=torch.int64)
    found = SyntheticAcceptance([1.0]).verify(
        torch.tensor([4, 5]), nothing, [0, 0], [request(), request()]
    )
    assert found == Verification([0, 0], [[4], [5]])


@pytest.mark.parametrize("rates", [(0.8,), (0.3,), (0.9, 0.5, 0.7)])
def test_draws_follow_the_rates(rates: tuple[float, ...]) -> None:
    expected = (*rates, rates[-1], rates[-1], rates[-1])[:4]
    passes = drawn_passes(rates)
    assert max(deviations(passes, expected)) < MAX_DEVIATIONS
    wrong = [rate - 0.1 for rate in expected]
    assert min(deviations(passes, wrong)) > MAX_DEVIATIONS


def test_draws_depend_on_seed_choice_and_position() -> None:
    verifier = SyntheticAcceptance([0.5])

    def pattern(seed: int, choice: int, start: int) -> list[int]:
        asked = request(seed, 3, choice)
        return [verifier.hindsight(asked, start + place, [0]) for place in range(64)]

    plain = pattern(1, 0, 10)
    assert pattern(1, 0, 10) == plain
    for other in (pattern(2, 0, 10), pattern(1, 1, 10), pattern(1, 0, 11)):
        assert 10 < sum(a != b for a, b in zip(plain, other, strict=True)) < 54


@pytest.mark.parametrize(("rates", "expected"), [("0.8", [0.8] * 4), ("0.9,0.5", [0.9, 0.5, 0.5])])
def test_acceptance_by_position_is_the_rate_whatever_the_draft(
    rates: str, expected: list[float]
) -> None:
    for good_draft in (False, True):
        core = synthetic_core(rates, good_draft=good_draft, speculation=5, max_model_len=512)
        passes = served_passes(core)
        assert max(deviations(passes, expected)) < MAX_DEVIATIONS


def test_verified_drafts_do_not_follow_the_rate() -> None:
    """The control: a random draft that is verified is accepted far less often."""
    core = make_core(tiny_llama(), tiny_llama(1), speculation=5, max_model_len=512)
    passes = served_passes(core)
    assert deviations(passes, [0.8])[0] > MAX_DEVIATIONS


@pytest.mark.parametrize("good_draft", [False, True])
@pytest.mark.parametrize("speculation", [3, "auto"])
def test_rate_0_is_plain_decoding_token_for_token(good_draft: bool, speculation: int | str) -> None:
    plain = make_core(tiny_llama())
    core = synthetic_core("0", good_draft=good_draft, speculation=speculation)
    for params in (greedy(NUM_TOKENS), seeded(NUM_TOKENS)):
        assert generate(core, PROMPTS, params) == generate(plain, PROMPTS, params)
    counts = core.stats().speculation
    assert counts.num_draft_tokens > 0
    assert counts.num_accepted_tokens == 0


def test_rate_1_accepts_every_draft() -> None:
    core = synthetic_core("1", speculation=4)
    add(core, PROMPTS[0], seeded(21), "a")
    stats = count_speculation(drain(core)["a-0"])
    # One token from the prompt's pass, then four passes of four drafts and one more each.
    assert stats.num_target_passes == 5
    assert stats.num_accepted_tokens_per_pos == stats.num_draft_tokens_per_pos == [4] * 4
    assert stats.tokens_per_target_pass == 21 / 5


def test_accepted_drafts_change_the_words() -> None:
    core = synthetic_core("1", speculation=4)
    plain = generate(make_core(tiny_llama()), PROMPTS, greedy(NUM_TOKENS))
    written = generate(core, PROMPTS, greedy(NUM_TOKENS))
    assert all(mine != other for mine, other in zip(written, plain, strict=True))


def test_rejected_places_have_the_targets_token_for_the_words_before() -> None:
    """What follows accepted drafts is what the plain sampler gives behind these very tokens."""
    params = greedy(NUM_TOKENS)
    core = synthetic_core("0.6", speculation=3)
    add(core, PROMPTS[0], params, "a")
    written = list(PROMPTS[0])
    plain = make_core(tiny_llama())
    for delta in drain(core)["a-0"]:
        *drafts, own = delta.new_token_ids
        assert len(drafts) == delta.num_accepted_tokens
        assert generate(plain, [written + drafts], greedy(1)) == [[own]]
        written += delta.new_token_ids


@pytest.mark.parametrize("draft_seed", [0, 1])
def test_words_do_not_depend_on_the_batch(draft_seed: int) -> None:
    for params in (seeded(NUM_TOKENS), greedy(NUM_TOKENS, seed=5)):
        core = synthetic_core("0.7", good_draft=draft_seed == 0, speculation=3)
        alone = [generate(core, [prompt], params)[0] for prompt in PROMPTS]
        assert generate(core, PROMPTS, params) == alone
        assert generate(core, PROMPTS[::-1], params) == alone[::-1]


def test_preempted_requests_end_and_give_back_their_blocks() -> None:
    core = synthetic_core("0.7", num_blocks=24, max_model_len=64, speculation=2)
    answers = generate(core, random_prompts(6), greedy(NUM_TOKENS))
    assert [len(answer) for answer in answers] == [NUM_TOKENS] * 6
    assert core.scheduler.num_preemptions > 0, "the pool was meant to be too small"
    assert core.kv.usage == 0.0


def predicted(core: EngineCore, answer: list[int], **values: object) -> list[RequestDelta]:
    params = SamplingParams(
        temperature=0.0, max_tokens=12, predicted_token_ids=tuple(answer), **values
    )
    add(core, PROMPTS[0], params, "a")
    return drain(core)["a-0"]


def test_known_drafts_are_accepted_by_the_same_draws() -> None:
    first = generate(make_core(tiny_llama()), PROMPTS[:1], greedy(1))[0]
    core = make_core(tiny_llama(), drafters="ngram", speculation=3, synthetic_acceptance="1,1,0")
    deltas = predicted(core, [*first, 30, 31, 32, 33])
    assert tokens_of(deltas)[:3] == [*first, 30, 31]
    assert deltas[1].drafter == PREDICTION
    assert (deltas[1].num_draft_tokens, deltas[1].num_accepted_tokens) == (4, 2)


def test_an_accepted_end_of_sequence_ends_the_answer() -> None:
    first = generate(make_core(tiny_llama()), PROMPTS[:1], greedy(1))[0]
    answer = [*first, 30, 2, 31]
    core = make_core(tiny_llama(), drafters="ngram", speculation=3, synthetic_acceptance="1")
    deltas = predicted(core, answer)
    assert tokens_of(deltas) == answer[:3]
    assert deltas[-1].finish_reason is FinishReason.STOP
    assert core.kv.usage == 0.0
    assert tokens_of(predicted(core, answer, ignore_eos=True))[:4] == answer


def test_auto_accepts_by_the_draws_too() -> None:
    core = synthetic_core("1", speculation="auto", max_model_len=512)
    generate(core, PROMPTS, greedy(200))
    counts = core.stats().speculation
    assert counts.num_accepted_tokens == counts.num_draft_tokens > 0


def test_rates_may_change_between_steps() -> None:
    core = synthetic_core("1")
    generate(core, PROMPTS, greedy(NUM_TOKENS))
    before = core.stats().speculation.num_accepted_tokens
    assert before == core.stats().speculation.num_draft_tokens
    core.change_synthetic_acceptance([0.0])
    generate(core, PROMPTS, greedy(NUM_TOKENS))
    assert core.stats().speculation.num_accepted_tokens == before


@pytest.mark.parametrize(("rates", "changed"), [("1", []), (None, [0.5])])
def test_rates_change_only_where_there_are_some(rates: str | None, changed: list[float]) -> None:
    core = make_core(tiny_llama(), tiny_llama(1), synthetic_acceptance=rates)
    with pytest.raises(ConfigError, match="synthetic_acceptance: rates can change"):
        core.change_synthetic_acceptance(changed)


def test_hindsight_asks_the_draws_and_not_the_text() -> None:
    asked = request(num_tokens=3)
    asked.append([7, 8, 9])
    assert count_equal(asked, 3, [7, 8, 1]) == 2
    assert count_equal(asked, 3, [7, 8, 9, 4]) == 3
    assert SyntheticAcceptance([1.0]).hindsight(asked, 3, [0, 0, 0]) == 3
    assert SyntheticAcceptance([0.0]).hindsight(asked, 3, [7, 8, 9]) == 0


def test_a_request_without_speculation_is_the_targets() -> None:
    params = greedy(NUM_TOKENS, max_draft_tokens=0)
    plain = generate(make_core(tiny_llama()), PROMPTS, greedy(NUM_TOKENS))
    assert generate(synthetic_core("1", speculation=3), PROMPTS, params) == plain


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"logprobs": 0}, "logprobs"),
        ({"structured_output": StructuredOutput(kind="regex", text="a+")}, "structured_output"),
        ({"allowed_token_ids": (5, 6)}, "allowed_token_ids"),
        ({"bad_words_token_ids": ((5,),)}, "bad_words"),
        ({"logit_bias": {5: 1.0}}, "logit_bias"),
    ],
)
def test_what_the_target_must_have_sampled_is_refused_by_name(
    values: dict[str, object], param: str
) -> None:
    core, params = synthetic_core("0.5"), SamplingParams(max_tokens=4, **values)
    with pytest.raises(InvalidRequestError, match=rf"^{param}: .*--synthetic-acceptance") as caught:
        add(core, PROMPTS[0], params, "a")
    assert caught.value.param == param
    add(make_core(tiny_llama(), tiny_llama(1)), PROMPTS[0], params, "a")


def test_log_probabilities_of_the_prompt_are_the_targets_as_ever() -> None:
    core = synthetic_core("0.5")
    add(core, PROMPTS[0], greedy(4, prompt_logprobs=1), "a")
    told = [entry for delta in drain(core)["a-0"] for entry in delta.prompt_logprobs or []]
    assert len(told) == len(PROMPTS[0]) - 1


@pytest.mark.parametrize(
    ("speculation", "said"),
    [
        (SpeculationConfig(synthetic_acceptance="0.8"), "nobody is named who drafts"),
        (SpeculationConfig(synthetic_acceptance="0.8", draft="none"), "nobody is named who drafts"),
        (
            SpeculationConfig(synthetic_acceptance="0.8", draft="d", max_draft_tokens=0),
            "speculation is off",
        ),
    ],
)
def test_refused_by_name_where_nobody_drafts(speculation: SpeculationConfig, said: str) -> None:
    config = EngineConfig(model=ModelConfig(model="m"), speculation=speculation)
    with pytest.raises(ConfigError, match=rf"synthetic_acceptance: 0.8 needs drafts, but {said}"):
        resolve(config)


def test_the_core_refuses_it_too() -> None:
    with pytest.raises(ConfigError, match="synthetic_acceptance: 0.8 needs drafts"):
        make_core(tiny_llama(), synthetic_acceptance=0.8)


def test_the_demo_pair_drafts_unless_speculation_is_off(demo_pair: tuple[Path, Path]) -> None:
    asked = SpeculationConfig(synthetic_acceptance="0.8")
    found = resolve(EngineConfig(speculation=asked)).speculation
    assert found.acceptance_rates == (0.8,)
    assert found.draft == str(demo_pair[1])
    off = SpeculationConfig(synthetic_acceptance="0.8", max_draft_tokens=0)
    with pytest.raises(ConfigError, match="but speculation is off"):
        resolve(EngineConfig(speculation=off))


def test_the_engine_warns_when_it_starts_and_only_then(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="engine.speculation"):
        make_core(tiny_llama(), tiny_llama(1))
        assert not caplog.records
        core = synthetic_core("0.9,0.8")
    assert [record.getMessage() for record in caplog.records] == [
        "synthetic_acceptance rates=0.9,0.8 words=not_the_models"
    ]
    assert core.info.synthetic_acceptance == (0.9, 0.8)
