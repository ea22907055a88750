"""A draft that is loaded and not used is told of: at start where it shows, else while serving."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from engine.config import EngineConfig
from engine.config_files import apply_options
from engine.core import EngineCore
from engine.draft_planner import DraftPlan, DraftPlanner, DraftRoom
from engine.draft_warnings import best_speedup, warn_of_drafts
from engine.model.loader import from_model
from engine.model_pair import ModelPair
from engine.request import NGRAM
from engine.sampling_params import SamplingParams
from engine.speculative.controller import Controller
from engine.speculative.idle_watch import IdleWatch
from engine.speculative.plan_meter import PlanMeter
from engine.speculative.step_costs import CostGrid, StepCosts
from engine.step import KnownDraft
from tests.engine.fake_model import make_request
from tests.tiny_models import generate, greedy, make_core, tiny_llama
from tests.two_vocabularies import byte_level, foreign_core

pytestmark = pytest.mark.usefixtures("own_cache")
MS = 0.001
ROOMS = [DraftRoom(make_request(name, 4), 8, 8) for name in "ab"]


def costs(target_ms: float, draft_ms: float) -> StepCosts:
    """Passes that cost the same however many rows they have."""

    def flat(seconds: float) -> CostGrid:
        return CostGrid([1, 8], [1, 9], [[seconds, seconds]] * 2)

    return StepCosts(flat(target_ms * MS), flat(draft_ms * MS))


def warnings_of(core: EngineCore, caplog: pytest.LogCaptureFixture) -> str:
    """The one line that was logged and that callers are told."""
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert told == list(core.info.warnings)
    (line,) = told
    return line


@pytest.mark.parametrize("drafters", ["org/draft", "ngram", "layer-skip", "suffix,org/draft"])
def test_speculation_that_is_off_uses_nobody(
    drafters: str, caplog: pytest.LogCaptureFixture
) -> None:
    core = make_core(tiny_llama(), drafters=drafters, speculation="off")
    line = f"draft_not_used draft={drafters} reason=speculation_off"
    assert warnings_of(core, caplog) == line


def test_a_draft_of_shorter_context_is_told(caplog: pytest.LogCaptureFixture) -> None:
    core = make_core(tiny_llama(), tiny_llama(1, positions=64), speculation=3)
    line = warnings_of(core, caplog)
    assert line.startswith("draft_hardly_used draft=LlamaForCausalLM reason=short_context")
    assert "draft_max_len=64 max_model_len=512" in line


def test_a_context_that_is_lowered_to_the_drafts_is_fine() -> None:
    core = make_core(tiny_llama(), tiny_llama(1, positions=64), speculation=3, max_model_len=64)
    assert core.info.warnings == ()


@pytest.mark.parametrize(("num_tokens", "verb"), [(1, "not"), (4, "hardly")])
def test_steps_without_room_for_drafts_are_told(
    num_tokens: int, verb: str, caplog: pytest.LogCaptureFixture
) -> None:
    core = make_core(
        tiny_llama(), drafters="ngram", max_num_batched_tokens=num_tokens, max_num_seqs=4
    )
    line = warnings_of(core, caplog)
    assert line.startswith(f"draft_{verb}_used draft=ngram reason=small_steps")
    assert f"max_num_batched_tokens={num_tokens} max_num_seqs=4" in line
    if verb == "not":
        generate(core, [[5, 6, 5, 6]], greedy(12))
        assert core.stats().speculation.num_drafts == 0


def test_a_draft_that_is_as_slow_as_its_target_is_told(caplog: pytest.LogCaptureFixture) -> None:
    core = make_core(tiny_llama(), tiny_llama(1, layers=6), speculation="auto", max_num_seqs=2)
    line = warnings_of(core, caplog)
    assert line.startswith("draft_not_used draft=LlamaForCausalLM reason=too_slow best_speedup=0.")
    assert line.endswith('advice="--speculation off saves its memory"')


def test_the_best_speed_up_is_that_of_drafts_that_are_all_right() -> None:
    assert best_speedup(costs(10.0, 10.0), 8) == pytest.approx(1.0)
    assert best_speedup(costs(10.0, 20.0), 8) == pytest.approx(2 / 3)
    assert best_speedup(costs(10.0, 0.1), 8) == pytest.approx(90 / 10.8)


def test_common_tokens_that_are_asked_for_and_few_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    target = tiny_llama(vocab=900), byte_level(900)
    draft = tiny_llama(1, vocab=330), byte_level(330, 1)
    line = warnings_of(foreign_core(target, draft, "tli"), caplog)
    assert "reason=few_common_tokens" in line
    assert foreign_core(target, draft, "slem").info.warnings == ()


def test_drafts_that_can_be_used_are_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    for core in (
        make_core(tiny_llama()),
        make_core(tiny_llama(), speculation="off"),
        make_core(tiny_llama(), drafters="ngram,suffix", speculation="auto", max_num_seqs=2),
        make_core(tiny_llama(), tiny_llama(1), speculation=4),
    ):
        generate(core, [[5, 6, 7]], replace(greedy(4), max_draft_tokens=0))
        assert core.info.warnings == ()
        assert core.stats().warnings == []
    assert "draft_" not in caplog.text


class Acceptable:
    """Plans drafts in some steps, of a model or known ones."""

    draft_rests = False

    def __init__(self, every: int, known: KnownDraft | None = None) -> None:
        self._every = every
        self._known = known
        self._num_steps = 0

    def wakes(self) -> bool:
        return True

    def plan(self, rooms: list[DraftRoom]) -> list[DraftPlan]:
        self._num_steps += 1
        num_tokens = 2 if self._num_steps % self._every == 0 else 0
        return [DraftPlan(self._known, num_tokens) for _ in rooms]


def watched(planner: DraftPlanner, rooms: list[DraftRoom], num_steps: int) -> IdleWatch:
    """Plan so many steps under a watch."""
    watch = IdleWatch("small", "leave it out")
    meter = PlanMeter(planner, dict, lambda _: False, lambda: 1.25, watch)
    for _ in range(num_steps):
        meter.plan(rooms)
    return watch


def test_a_draft_that_its_controller_gave_up_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hopeless = Controller(costs(5.0, 10.0), lambda _request, _limit: [], 8)
    watch = watched(hopeless, ROOMS, 2000)
    assert watch.warning is not None
    assert watch.warning.startswith("draft_not_used draft=small reason=does_not_pay steps=512")
    assert 'estimated_speedup=1.25 advice="leave it out"' in watch.warning
    assert [record.getMessage() for record in caplog.records] == [watch.warning]


@pytest.mark.parametrize(
    ("planner", "rooms", "is_told"),
    [
        (Acceptable(every=2000), ROOMS, True),
        (Acceptable(every=64), ROOMS, True),
        (Acceptable(every=8), ROOMS, False),
        (Acceptable(every=2000), [], False),
        (Acceptable(every=2000), [replace(room, num_model_tokens=0) for room in ROOMS], False),
        (Acceptable(every=2000, known=KnownDraft([1], NGRAM, [0.9])), ROOMS, False),
    ],
    ids=["never", "rarely", "often", "nobody", "no_room", "known"],
)
def test_only_steps_in_which_a_model_could_have_drafted_count(
    planner: Acceptable, rooms: list[DraftRoom], is_told: bool
) -> None:
    assert (watched(planner, rooms, 600).warning is not None) == is_told


def test_too_few_steps_say_nothing() -> None:
    assert watched(Acceptable(every=2000), ROOMS, 511).warning is None


def test_the_engine_tells_of_a_draft_that_it_gave_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.speculation.load_or_measure", lambda *_: costs(5.0, 10.0))
    pair = make_core(tiny_llama(), tiny_llama(1), speculation="auto", max_num_seqs=2)
    prompt, params = [5, 6, 7], SamplingParams(temperature=0.0, max_tokens=500, ignore_eos=True)
    for _ in range(6):
        generate(pair, [prompt], params)
    (line,) = pair.stats().warnings
    assert line.startswith("draft_not_used draft=LlamaForCausalLM reason=does_not_pay")
    assert line.endswith('advice="--speculation off saves its memory"')


def test_layers_of_the_target_have_no_memory_to_save() -> None:
    pair = ModelPair(from_model(tiny_llama()), kept_layers=(0, 1))
    config = apply_options(EngineConfig(), {"draft": "layer-skip"}).on_device("cpu")
    (line,) = warn_of_drafts(config, pair, 512, costs(10.0, 10.0))
    assert line == (
        "draft_not_used draft=layer-skip reason=too_slow best_speedup=1.00 "
        'advice="--speculation off leaves it out"'
    )
    assert warn_of_drafts(config, pair, 512, costs(10.0, 5.0)) == ()
