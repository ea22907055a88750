"""Puts speculation together for one engine: who drafts, who decides how much."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from engine.config import TLI, EngineConfig, acceptance_text
from engine.draft_planner import FixedPlanner
from engine.draft_warnings import advice_for, draft_name
from engine.model.layer_subset import subset_of
from engine.model_pair import ModelPair
from engine.request import Request
from engine.runner.decode_loop import DecodeLoop
from engine.runner.model_runner import ModelRunner
from engine.runner.step_timer import load_or_measure
from engine.sampling.sampler import Sampler
from engine.speculative.arbiter import Arbiter
from engine.speculative.controller import Controller
from engine.speculative.draft_model import DraftModelProposer
from engine.speculative.drafter_faults import CONTROLLER, DrafterFaults
from engine.speculative.foreign_draft import ForeignModel
from engine.speculative.idle_watch import IdleWatch
from engine.speculative.known_tokens import KnownTokens
from engine.speculative.layer_skip import LayerSkipProposer
from engine.speculative.margin_gate import DraftGate
from engine.speculative.plan_meter import PlanMeter
from engine.speculative.proposer import NoProposer, Proposer
from engine.speculative.step_costs import StepCosts
from engine.speculative.string_match import StringMatchProposer
from engine.speculative.synthetic_acceptance import SyntheticAcceptance
from engine.speculative.token_drafters import ForcedTokens
from engine.speculative.token_intersection import TokenIntersectionProposer
from engine.speculative.verifier import Verification, Verifier, count_equal, verify
from engine.step import ModelOutput, ScheduledRequest, SchedulerOutput
from engine.step_ledger import Planning

logger = logging.getLogger(__name__)


class Speculation:
    """The drafters of an engine and their controller.

    Args:
        config: all settings.
        models: what is loaded.
        target: runs the model that verifies.
        draft: runs the model that drafts; None = none does.
        sampler: samples target and draft.
        forced_tokens: speaks for grammars.
        loop: decodes without waiting for the host; None = every step is waited for.

    Attributes:
        has_draft: whether a model drafts.
        draft_follows: whether it has keys and values of its own in the shared blocks.
        draft_max_len: positions of these blocks that it knows; None = all.
        proposer: drafts in each step.
        synthetic: the dice that stand in the verifier's place; None = drafts are verified.
        verify: says what each step emits.
        planner: decides each step's drafts; None when speculation is off.
        costs: of passes, where they decide about drafts.
    """

    def __init__(
        self,
        config: EngineConfig,
        models: ModelPair,
        target: ModelRunner,
        draft: ModelRunner | None,
        sampler: Sampler,
        forced_tokens: ForcedTokens,
        loop: DecodeLoop | None = None,
    ) -> None:
        self.has_draft = draft is not None
        self.draft_follows = models.draft is not None and models.foreign is None
        self.draft_max_len = (
            models.draft.max_model_len if models.draft and self.draft_follows else None
        )
        config.speculation.check_acceptance()
        self.synthetic = synthetic = _synthetic(config)
        self.verify: Verifier = _verify if synthetic is None else synthetic.verify
        self._hindsight = count_equal if synthetic is None else synthetic.hindsight
        self._faults = DrafterFaults()
        self._known = KnownTokens(config.speculation, forced_tokens, self._faults)
        self._controller: Controller | None = None
        self._watch: IdleWatch | None = None
        self.costs: StepCosts | None = None
        self._loop = loop
        self.planner = self._make_planner(config, models, target, draft)
        gate = None if self._controller is None or loop is not None else self._controller.gate
        drafter = _drafter(config, models, draft, sampler, gate)
        self.proposer = Arbiter(
            drafter, target.loaded.device, lambda: sampler.noise_seconds, self._faults
        )

    def observe(
        self,
        scheduled: SchedulerOutput,
        output: ModelOutput,
        draft_seconds: float,
        target_seconds: float,
    ) -> None:
        """Learn from a step."""
        controller = self._controller
        if controller is None or not controller.is_watching or self._faults.is_off(CONTROLLER):
            return
        # Noise that was drawn for drafts is noise that the target need not draw.
        shared = self.proposer.noise_seconds
        with self._faults.watching(CONTROLLER):
            controller.observe(scheduled, output, draft_seconds - shared, target_seconds + shared)

    def observe_host(
        self,
        scheduled: SchedulerOutput,
        output: ModelOutput,
        host_seconds: float,
    ) -> None:
        """Learn what a step took beside its passes."""
        controller = self._controller
        if controller is None or not controller.is_watching or self._faults.is_off(CONTROLLER):
            return
        with self._faults.watching(CONTROLLER):
            controller.observe_host(scheduled, output, host_seconds)

    def survival(self, share: ScheduledRequest, num_drafts: int) -> list[float] | None:
        """Give the estimates of a share's drafts before the step is observed; None without any."""
        if self._controller is None or self._faults.is_off(CONTROLLER):
            return None
        with self._faults.watching(CONTROLLER):
            return self._controller.survival(share, num_drafts)
        return None

    def take_planning(self) -> Planning:
        """Give what planning took and promised since the last time."""
        return Planning() if self.planner is None else self.planner.take()

    def evict(self, request_ids: list[str]) -> None:
        """Forget requests that have ended; unknown ids are fine."""
        self._known.evict(request_ids)
        if self._controller is not None:
            self._controller.evict(request_ids)

    @property
    def estimated_speedup(self) -> float:
        """What the controller expects of the last step's drafts; 1 where nothing is weighed."""
        if self._controller is None or self._faults.is_off(CONTROLLER):
            return 1.0
        return self._controller.estimated_speedup

    @property
    def warnings(self) -> list[str]:
        """Give what turned out while serving: a model that drafts nothing, drafters that failed."""
        found = None if self._watch is None else self._watch.warning
        return [*([] if found is None else [found]), *self._faults.warnings]

    @property
    def drafter_failures(self) -> dict[str, int]:
        """Count the errors for which drafters were switched off, by who raised them."""
        return dict(self._faults.counts)

    def _make_planner(
        self,
        config: EngineConfig,
        models: ModelPair,
        target: ModelRunner,
        draft: ModelRunner | None,
    ) -> PlanMeter | None:
        speculation = config.speculation
        if speculation.is_off:
            return None
        num_model_tokens = 0 if draft is None else speculation.num_draft_tokens
        if speculation.is_auto and speculation.drafters:
            self.costs = load_or_measure(config, target, draft, self._loop)
            # A gate looks at each draft before the next one, which a loop does not wait for.
            has_gate = self._loop is None and (
                models.foreign is None or models.foreign.method == TLI
            )
            self._controller = Controller(
                self.costs,
                self._known.next,
                num_model_tokens,
                has_gate=has_gate,
                hindsight=self._hindsight,
            )
            if draft is not None:
                self._watch = IdleWatch(draft_name(models), advice_for(models))
            return PlanMeter(
                self._controller,
                self._known.take_seconds,
                self._known.reads_tokens_of,
                lambda: self.estimated_speedup,
                self._watch,
                self._faults,
            )
        fixed = FixedPlanner(self._known.next, num_model_tokens)
        return PlanMeter(
            fixed, self._known.take_seconds, self._known.reads_tokens_of, faults=self._faults
        )


def _verify(
    sampled: torch.Tensor,
    draft_token_ids: torch.Tensor,
    num_draft_tokens: Sequence[int],
    _requests: Sequence[Request],
) -> Verification:
    return verify(sampled, draft_token_ids, num_draft_tokens)


def _synthetic(config: EngineConfig) -> SyntheticAcceptance | None:
    rates = config.speculation.acceptance_rates
    if not rates:
        return None
    logger.warning("synthetic_acceptance rates=%s words=not_the_models", acceptance_text(rates))
    return SyntheticAcceptance(rates)


def draft_runner(
    config: EngineConfig, models: ModelPair, target: ModelRunner
) -> ModelRunner | None:
    """Make the runner of the model that drafts: over blocks like the target's, or over its own."""
    shape = (target.storage.num_blocks, target.storage.block_size)
    max_num_tokens = config.scheduler.step_tokens
    if models.kept_layers is not None:
        subset = subset_of(models.target, models.kept_layers)
        return ModelRunner(subset, *shape, max_num_tokens, target.storage)
    if models.draft is None:
        return None
    return ModelRunner(models.draft, *shape, max_num_tokens)


def _drafter(
    config: EngineConfig,
    models: ModelPair,
    draft: ModelRunner | None,
    sampler: Sampler,
    gate: DraftGate | None,
) -> Proposer:
    target = models.target
    if draft is None:
        return NoProposer(target.device)
    if models.kept_layers is not None:
        return LayerSkipProposer(draft, sampler, gate)
    if models.foreign is None:
        return DraftModelProposer(draft, sampler, draft.loaded.max_model_len, gate)
    max_num_tokens = config.scheduler.step_tokens
    foreign = ForeignModel(draft, models.foreign.bridge, max_num_tokens)
    if models.foreign.method == TLI:
        return TokenIntersectionProposer(foreign, sampler, target.vocab_size, gate)
    return StringMatchProposer(foreign, sampler, target.vocab_size)
