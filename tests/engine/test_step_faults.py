"""Steps that fail: memory that runs out, logits that are no numbers, drafters that raise."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch

from engine.core import EngineCore
from engine.errors import ModelLoadError
from engine.memory_errors import OUT_OF_MEMORY
from engine.metrics import EngineStats
from engine.request import INVALID_LOGITS, FinishReason, RequestDelta
from engine.runner.loop_setup import make_decode_loop
from engine.runner.target_pass import Span
from engine.speculative.drafter_faults import DrafterFaults
from engine.step_limit import StepLimit
from tests.engine.late_device import LateQueue, RecordedGraphs
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

PROMPTS = random_prompts(5)
MIXED = [greedy(20), seeded(16), greedy(9), seeded(24, top_k=9), seeded(12, top_p=0.8)]

SHORTAGES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 12 bytes"),
    RuntimeError("CUDA error: out of memory"),
]
DRAFTERS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "nobody": ([], {}),
    "a twin": ([tiny_llama()], {"speculation": 3}),
    "ngram and a model": ([tiny_llama()], {"drafters": "in memory,ngram", "speculation": 3}),
}


class SmallMemory:
    """Stands before a core's target, and has room for so many tokens per pass.

    Args:
        core: its passes are limited from now on.
        most: tokens of a pass; those whose prompt begins with `whale` count as `most + 1` each.
        error: raised where there are more.
    """

    def __init__(
        self, core: EngineCore, most: int, error: Exception, whale: int | None = None
    ) -> None:
        self.num_failures = 0
        self._core = core
        self._most = most
        self._error = error
        self._whale = whale
        self._execute = core._runner.execute
        core._runner.execute = self.execute  # type: ignore[method-assign]

    def execute(self, spans: Sequence[Span]) -> torch.Tensor:
        is_too_much = sum(len(span.token_ids) for span in spans) > self._most
        shares = self._core.scheduler._last_step.scheduled
        is_there = any(share.request.prompt_token_ids[0] == self._whale for share in shares)
        if is_too_much or is_there:
            self.num_failures += 1
            raise self._error
        return self._execute(spans)


def run_bounded(core: EngineCore, num_steps: int = 2000) -> dict[str, list[RequestDelta]]:
    """Step until all have ended, which must not take for ever; the pool stays consistent."""
    deltas: dict[str, list[RequestDelta]] = {}
    for _ in range(num_steps):
        if not core.has_unfinished:
            return deltas
        for delta in core.step():
            deltas.setdefault(delta.request_id, []).append(delta)
        core.kv.check_invariants()
    raise AssertionError("the requests do not end")


def add_all(core: EngineCore) -> None:
    for index, (prompt, params) in enumerate(zip(PROMPTS, MIXED, strict=True)):
        add(core, prompt, params, f"r{index}")


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: f"{type(error).__name__}-{error}")
def test_a_step_that_does_not_fit_is_computed_in_parts(error: Exception) -> None:
    expected = generate(make_core(tiny_llama()), PROMPTS, MIXED)
    core = make_core(tiny_llama())
    memory = SmallMemory(core, 7, error)
    assert generate(core, PROMPTS, MIXED) == expected
    assert memory.num_failures > 0
    assert core.stats().num_shed_steps == memory.num_failures
    assert core.kv.usage == 0.0


@pytest.mark.parametrize("most", [1, 3, 16])
@pytest.mark.parametrize("drafters", DRAFTERS)
def test_words_stay_the_same_whoever_drafts(drafters: str, most: int) -> None:
    models, options = DRAFTERS[drafters]
    expected = generate(make_core(tiny_llama()), PROMPTS, MIXED)
    core = make_core(tiny_llama(), *models, num_blocks=60, max_model_len=128, **options)
    memory = SmallMemory(core, most, MemoryError())
    add_all(core)
    deltas = run_bounded(core)
    assert [tokens_of(deltas[f"r{index}-0"]) for index in range(len(PROMPTS))] == expected
    assert memory.num_failures > 0


def test_only_the_request_that_does_not_fit_alone_fails() -> None:
    expected = generate(make_core(tiny_llama()), PROMPTS, MIXED)
    core = make_core(tiny_llama())
    SmallMemory(core, 64, MemoryError(), whale=99)
    add(core, [99, 5, 6], greedy(8), "whale")
    add_all(core)
    deltas = run_bounded(core)
    (end,) = deltas.pop("whale-0")
    assert (end.finish_reason, end.error) == (FinishReason.ERROR, OUT_OF_MEMORY)
    assert not core._ledger._untold
    assert [tokens_of(deltas[f"r{index}-0"]) for index in range(len(PROMPTS))] == expected
    assert core.kv.usage == 0.0


def test_one_that_fails_in_mid_prompt_leaves_no_bookings_behind() -> None:
    core = make_core(tiny_llama(), max_num_batched_tokens=16)
    add(core, list(range(1, 41)), greedy(8), "long")
    core.step()
    assert core._ledger._untold, "what its first part took is not told yet"
    memory = SmallMemory(core, 0, MemoryError())
    (end,) = run_bounded(core)["long-0"]
    assert (end.finish_reason, end.error) == (FinishReason.ERROR, OUT_OF_MEMORY)
    assert memory.num_failures > 0
    assert not core._ledger._untold


def test_the_largest_request_gives_its_blocks_back() -> None:
    core = make_core(tiny_llama())
    memory = SmallMemory(core, 512, MemoryError())
    (small,) = add(core, PROMPTS[0][:3], greedy(8), "small")
    (large,) = add(core, list(range(3, 60)), greedy(8), "large")
    core.step()
    memory._most = 1
    core.step()
    assert (small.num_preemptions, large.num_preemptions) == (0, 1)
    assert core.kv.block_ids(large) == []
    memory._most = 512
    assert set(run_bounded(core)) == {"small-0", "large-0"}


def test_other_failures_of_a_step_are_not_taken_for_a_lack_of_memory() -> None:
    core = make_core(tiny_llama())
    SmallMemory(core, 0, RuntimeError("device-side assert triggered"))
    add_all(core)
    with pytest.raises(RuntimeError, match="assert"):
        core.step()


@pytest.mark.parametrize(
    ("place", "method"),
    [("scheduler", "update"), ("kv", "publish"), ("kv", "trim"), ("_ledger", "book")],
)
def test_memory_that_runs_out_while_a_step_is_booked_ends_the_engine(
    place: str, method: str
) -> None:
    core = make_core(tiny_llama())
    add_all(core)
    owner = getattr(core, place)
    work, calls = getattr(owner, method), iter(range(10_000))

    def fail(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 7:
            raise MemoryError
        return work(*args, **kwargs)

    setattr(owner, method, fail)
    # Half of a step's words cannot be taken back, and the other half would be lost.
    with pytest.raises(MemoryError):
        run_bounded(core)


@pytest.mark.parametrize("every", [2, 3, 7])
def test_a_launch_that_does_not_fit_leaves_the_decode_loop_whole(
    every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generate(make_core(tiny_llama()), PROMPTS, MIXED)
    late = partial(make_decode_loop, queue=LateQueue(), graphs=RecordedGraphs())
    monkeypatch.setattr("engine.core.make_decode_loop", late)
    core = make_core(tiny_llama(), tiny_llama(), speculation=2, decode_ahead="on")
    loop = core._loop
    assert loop is not None
    launch, counts = loop.launch, {"launches": 0}

    def fail_now_and_then(scheduled: Any) -> Any:
        counts["launches"] += 1
        is_ahead = core._under_way is not None
        if counts["launches"] % every == 0 and (is_ahead or scheduled.num_tokens > 1):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return launch(scheduled)

    monkeypatch.setattr(loop, "launch", fail_now_and_then)
    add_all(core)
    deltas = run_bounded(core)
    assert [tokens_of(deltas[f"r{index}-0"]) for index in range(len(PROMPTS))] == expected
    assert core.stats().num_shed_steps > 0


def test_a_loop_that_has_room_for_one_step_at_a_time_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = generate(make_core(tiny_llama()), PROMPTS[:1], greedy(30))
    late = partial(make_decode_loop, queue=LateQueue(), graphs=RecordedGraphs())
    monkeypatch.setattr("engine.core.make_decode_loop", late)
    core = make_core(tiny_llama(), decode_ahead="on")
    loop = core._loop
    assert loop is not None
    launch = loop.launch

    def fail_ahead(scheduled: Any) -> Any:
        if core._under_way is not None:
            raise MemoryError
        return launch(scheduled)

    monkeypatch.setattr(loop, "launch", fail_ahead)
    assert generate(core, PROMPTS[:1], greedy(30)) == expected


def test_larger_steps_are_tried_again_after_a_while() -> None:
    limit = StepLimit(64)
    limit.shrink(50)
    limit.shrink(25)
    assert (limit.num_tokens, limit.num_shed) == (12, 2)
    seen = set()
    for _ in range(200):
        limit.grow()
        seen.add(limit.num_tokens)
    assert seen == {12, 24, 48, 64}
    assert not limit.is_tight
    for _ in range(20):
        limit.shrink(1)
    assert (limit.num_tokens, limit.is_tight) == (1, True)


def test_logits_that_are_no_numbers_end_their_request_alone() -> None:
    expected = generate(make_core(tiny_llama()), PROMPTS, MIXED)
    core = make_core(tiny_llama())
    execute = core._runner.execute

    def poison(spans: Sequence[Span]) -> torch.Tensor:
        logits = execute(spans)
        shares = core.scheduler._last_step.scheduled
        row = 0
        for share, span in zip(shares, spans, strict=True):
            if share.request.request_id == "bad-0" and share.request.num_output_tokens == 2:
                logits[row] = float("nan")
            row += span.num_logits
        return logits

    core._runner.execute = poison  # type: ignore[method-assign]
    add(core, [50, 51, 52], greedy(8), "bad")
    add_all(core)
    deltas = run_bounded(core)
    bad = deltas.pop("bad-0")
    assert len(tokens_of(bad)) == 2
    assert (bad[-1].finish_reason, bad[-1].error) == (FinishReason.ERROR, INVALID_LOGITS)
    assert [tokens_of(deltas[f"r{index}-0"]) for index in range(len(PROMPTS))] == expected
    assert core.kv.usage == 0.0


def fail_at(number: int, work: Callable[..., Any]) -> Callable[..., Any]:
    """Raise at one call; every call is counted in `calls`."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        wrapped.calls += 1  # type: ignore[attr-defined]
        if wrapped.calls == number:  # type: ignore[attr-defined]
            raise ZeroDivisionError("a drafter went wrong")
        return work(*args, **kwargs)

    wrapped.calls = 0  # type: ignore[attr-defined]
    return wrapped


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("speculation", [3, "auto"])
def test_a_draft_model_that_raises_is_switched_off_and_the_words_stay(
    speculation: int | str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = generate(make_core(tiny_llama()), PROMPTS, MIXED)
    core = make_core(
        tiny_llama(), tiny_llama(), speculation=speculation, num_blocks=80, max_model_len=128
    )
    model = core._speculation.proposer._model
    propose = fail_at(3, model.propose)
    model.propose = propose  # type: ignore[method-assign]
    with caplog.at_level(logging.ERROR):
        assert generate(core, PROMPTS, MIXED) == expected
    assert propose.calls == 3  # type: ignore[attr-defined]
    stats = core.stats()
    assert stats.drafter_failures == {"draft_model": 1}
    (warning,) = stats.warnings
    assert warning == (
        "drafter_switched_off drafter=draft_model error=ZeroDivisionError: a drafter went wrong"
    )
    assert warning in caplog.text
    # The target goes on publishing alone, so that prefixes are found as ever.
    before = core.kv.num_prefix_hit_tokens
    long = random_prompts(1, low=38)[0]
    assert generate(core, [long], greedy(4)) == generate(core, [long], greedy(4))
    assert core.kv.num_prefix_hit_tokens > before
    assert core.kv.usage == 0.0


@pytest.mark.parametrize("name", ["ngram", "suffix"])
def test_a_drafter_without_a_model_that_raises_is_switched_off(name: str) -> None:
    prompts = [prompt * 3 for prompt in PROMPTS]
    expected = generate(make_core(tiny_llama()), prompts, MIXED)
    core = make_core(tiny_llama(), drafters=name, speculation=3)
    (drafter,) = core._speculation._known._lookups
    draft = fail_at(2, drafter.draft)
    drafter.draft = draft  # type: ignore[method-assign]
    assert generate(core, prompts, MIXED) == expected
    assert draft.calls == 2  # type: ignore[attr-defined]
    assert core.stats().drafter_failures == {name: 1}


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("method", ["plan", "observe"])
def test_a_controller_that_raises_is_switched_off(method: str) -> None:
    expected = generate(make_core(tiny_llama()), PROMPTS, MIXED)
    core = make_core(
        tiny_llama(), tiny_llama(), speculation="auto", num_blocks=80, max_model_len=128
    )
    controller = core._speculation._controller
    assert controller is not None
    failing = fail_at(2, getattr(controller, method))
    setattr(controller, method, failing)
    assert generate(core, PROMPTS, MIXED) == expected
    assert failing.calls == 2  # type: ignore[attr-defined]
    stats = core.stats()
    assert stats.drafter_failures == {"controller": 1}
    assert stats.estimated_speedup == 1.0


def test_memory_that_runs_out_while_drafting_is_no_fault_of_the_drafter() -> None:
    faults = DrafterFaults()
    with pytest.raises(MemoryError), faults.watching("draft_model"):
        raise MemoryError
    assert not faults.is_off("draft_model")
    with faults.watching("draft_model"):
        raise ValueError("bad")
    assert faults.is_off("draft_model")


def test_a_draft_model_that_runs_out_of_memory_goes_on_in_smaller_steps() -> None:
    expected = generate(make_core(tiny_llama()), PROMPTS, MIXED)
    core = make_core(tiny_llama(), tiny_llama(), speculation=3)
    model = core._speculation.proposer._model
    propose, failures = model.propose, []

    def fail_when_large(scheduled: Any, sampling: Any) -> Any:
        if scheduled.num_tokens > 12:
            failures.append(scheduled.num_tokens)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return propose(scheduled, sampling)

    model.propose = fail_when_large  # type: ignore[method-assign]
    assert generate(core, PROMPTS, MIXED) == expected
    assert failures
    assert core.stats().drafter_failures == {}
    assert core.stats().speculation.num_draft_tokens == 0 or not core.stats().warnings


@pytest.mark.parametrize("decode_ahead", ["off", "on"])
def test_warming_up_runs_the_model_and_leaves_no_trace(decode_ahead: str) -> None:
    expected = generate(make_core(tiny_llama()), PROMPTS, MIXED)
    core = make_core(tiny_llama(), tiny_llama(), speculation=2, decode_ahead=decode_ahead)
    fresh = core.stats().num_steps
    core.warm_up()
    assert fresh == 0
    stats = core.stats()
    stats.num_graphs = stats.graph_bytes = 0
    assert stats == EngineStats()
    assert not core.has_unfinished
    assert core.kv.usage == 0.0
    assert generate(core, PROMPTS, MIXED) == expected


def test_a_model_that_gives_no_numbers_does_not_become_ready() -> None:
    core = make_core(tiny_llama())
    core._runner.execute = lambda spans: torch.full((len(spans), 128), float("nan"))  # type: ignore[method-assign]
    with pytest.raises(ModelLoadError, match="NaN"):
        core.warm_up()


def test_steps_say_who_is_in_them_before_they_run() -> None:
    core = make_core(tiny_llama())
    told: list[set[str]] = []
    core.on_step = told.append
    add_all(core)
    execute = core._runner.execute

    def check(spans: Sequence[Span]) -> torch.Tensor:
        shares = core.scheduler._last_step.scheduled
        assert told[-1] == {share.request.request_id for share in shares}
        return execute(spans)

    core._runner.execute = check  # type: ignore[method-assign]
    drain(core)
    assert told[0] == {f"r{index}-0" for index in range(len(PROMPTS))}
    assert len(told[-1]) == 1
