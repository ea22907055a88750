"""Offline generation: prompts in any form, answers in order, errors before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import LLM, SamplingParams
from engine.errors import ConfigError, DraftMismatchError, InvalidRequestError
from engine.llm import RunStats
from engine.request import FinishReason
from tests.conftest import DemoPair
from tests.tiny_models import greedy, random_prompts, seeded, tiny_llama

PROMPTS = random_prompts(4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A target and a draft as local folders, without tokenizers."""
    top = tmp_path_factory.mktemp("models")
    for name, seed in (("target", 0), ("draft", 1)):
        tiny_llama(seed).save_pretrained(top / name)
    return str(top / "target"), str(top / "draft")


@pytest.fixture(scope="module")
def llm(folders: tuple[str, str]) -> LLM:
    """A speculating LLM without a tokenizer."""
    return LLM(*folders, speculation=3, kv_cache_memory="16MiB")


@pytest.fixture(scope="module")
def demo(demo_pair: DemoPair) -> LLM:
    """The demo pair."""
    return LLM(kv_cache_memory="256MiB", threads=1)


def test_speculation_is_a_setting_and_not_another_text(llm: LLM, folders: tuple[str, str]) -> None:
    off = LLM(*folders, speculation="off", kv_cache_memory="16MiB")
    for params in (greedy(12), seeded(12)):
        mine = [o.outputs[0].token_ids for o in llm.generate(PROMPTS, params)]
        assert mine == [o.outputs[0].token_ids for o in off.generate(PROMPTS, params)]
    assert llm.last_run.speculation.num_draft_tokens > 0
    assert off.last_run.speculation.num_draft_tokens == 0
    assert not off.info.has_draft


def test_synthetic_acceptance_is_told_with_every_answer(llm: LLM, folders: tuple[str, str]) -> None:
    marked = LLM(*folders, speculation=3, synthetic_acceptance=[1, 0.5], kv_cache_memory="16MiB")
    for output in marked.generate(PROMPTS, greedy(12)):
        assert output.synthetic_acceptance == (1.0, 0.5)
        assert output.metrics["speculative_decoding"]["synthetic_acceptance"] == [1.0, 0.5]
    assert marked.last_run.synthetic_acceptance == (1.0, 0.5)
    (output,) = llm.generate(PROMPTS[:1], greedy(12))
    assert "synthetic_acceptance" not in output.metrics["speculative_decoding"]
    assert llm.last_run.synthetic_acceptance == ()


def test_synthetic_acceptance_without_a_draft_is_refused(folders: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"synthetic_acceptance: 0\.5 needs drafts"):
        LLM(folders[0], synthetic_acceptance=0.5)


def test_token_ids_need_no_tokenizer_and_text_is_none(llm: LLM) -> None:
    output = llm.generate(PROMPTS[0], greedy(5))[0]
    assert output.outputs[0].text is None
    assert len(output.outputs[0].token_ids) == 5
    assert output.outputs[0].finish_reason is FinishReason.LENGTH
    assert output.prompt_token_ids == PROMPTS[0]


def test_each_prompt_may_have_its_own_settings(llm: LLM) -> None:
    settings = [greedy(n) for n in (1, 2, 3, 4)]
    outputs = llm.generate(PROMPTS, settings)
    assert [len(o.outputs[0].token_ids) for o in outputs] == [1, 2, 3, 4]
    assert [o.index for o in outputs] == [0, 1, 2, 3]


def test_choices_come_back_together(llm: LLM) -> None:
    output = llm.generate([PROMPTS[0]], seeded(8, n=3, logprobs=2))[0]
    assert [answer.index for answer in output.outputs] == [0, 1, 2]
    assert len({tuple(answer.token_ids) for answer in output.outputs}) == 3
    assert output.num_output_tokens == 24
    for answer in output.outputs:
        assert answer.logprobs is not None
        assert [len(entry.top) for entry in answer.logprobs] == [2] * 8


def test_a_drawn_seed_is_reported_and_repeats_the_text(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, max_tokens=12, ignore_eos=True)
    first = llm.generate([PROMPTS[0]], params)[0]
    again = llm.generate([PROMPTS[0]], seeded(12, seed=first.seed))[0]
    assert again.outputs[0].token_ids == first.outputs[0].token_ids


def test_metrics_tell_how_drafts_fared(llm: LLM) -> None:
    output = llm.generate([PROMPTS[0]], greedy(12))[0]
    metrics = output.metrics["speculative_decoding"]
    assert metrics["num_target_passes"] + metrics["num_accepted_tokens"] == 12
    assert sum(metrics["num_draft_tokens_per_pos"]) == metrics["num_draft_tokens"] > 0
    assert llm.last_run.num_output_tokens == 12
    assert llm.last_run.speculation.num_target_passes == metrics["num_target_passes"]
    run, told = llm.last_run, ("draft_ms", "verify_ms", "overhead_ms")
    spent = run.draft_seconds, run.target_seconds, run.overhead_seconds
    assert [metrics[name] for name in told] == pytest.approx([1000.0 * s for s in spent], abs=0.01)
    assert 0.0 < run.controller_seconds < run.overhead_seconds
    assert list(metrics["by_drafter"]) == ["draft_model"]


def test_progress_is_told_after_each_step(llm: LLM) -> None:
    seen: list[tuple[int, int]] = []

    def note(run: RunStats) -> None:
        seen.append((run.num_finished, run.num_output_tokens))

    llm.generate(PROMPTS, greedy(6), on_progress=note)
    assert seen == sorted(seen)
    assert seen[-1] == (4, 24)


def test_nothing_runs_when_one_prompt_is_bad(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="token id 9999"):
        llm.generate([PROMPTS[0], [9999]], greedy(4))
    assert not llm.core.has_unfinished


def test_text_needs_a_tokenizer(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="no tokenizer"):
        llm.generate("hello", greedy(4))
    with pytest.raises(InvalidRequestError, match="stop texts need a tokenizer"):
        llm.generate([PROMPTS[0]], greedy(4, stop=("x",)))
    with pytest.raises(InvalidRequestError, match="no chat template"):
        llm.chat([{"role": "user", "content": "hello"}])


def test_as_many_settings_as_prompts(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="3 sampling settings for 4 prompts"):
        llm.generate(PROMPTS, [greedy(1)] * 3)


def test_a_failing_progress_callback_leaves_nothing_behind(llm: LLM) -> None:
    def fail(run: RunStats) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        llm.generate(PROMPTS, greedy(20), on_progress=fail)
    assert llm.core.kv.usage == 0.0
    assert llm.generate(PROMPTS[0], greedy(3))[0].num_output_tokens == 3


def test_unknown_options_name_the_nearest(folders: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="max_num_seqs|max-num-seqs"):
        LLM(folders[0], max_num_seq=4)


def test_drafts_need_a_draft(folders: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="need somebody who drafts"):
        LLM(folders[0], speculation=4)
    with pytest.raises(ConfigError, match="'auto' nor a number"):
        LLM(*folders, speculation="often")


def test_a_draft_of_another_vocabulary_is_refused(folders: tuple[str, str], tmp_path: Path) -> None:
    tiny_llama(3, vocab=96).save_pretrained(tmp_path / "other")
    with pytest.raises(DraftMismatchError, match="96 token ids, the target .* has 128"):
        LLM(folders[0], str(tmp_path / "other"), speculation=2)


def test_demo_pair_answers_a_chat_and_stops_at_a_text(demo: LLM) -> None:
    messages = [{"role": "user", "content": "I am looking for a restaurant in San Jose."}]
    params = SamplingParams(temperature=0.0, max_tokens=48)
    answer = demo.chat(messages, params).outputs[0]
    assert answer.text
    assert demo.last_run.speculation.num_accepted_tokens > 0
    word = answer.text.split()[2]
    stopped = demo.chat(messages, SamplingParams(temperature=0.0, max_tokens=48, stop=(word,)))
    cut = stopped.outputs[0]
    assert cut.text == answer.text[: answer.text.index(word)]
    assert cut.finish_reason is FinishReason.STOP
    assert cut.stop_reason == word
    assert len(cut.token_ids) < len(answer.token_ids)
