"""How much each stage may spend, on a CPU and on an accelerator.

Knows minutes, steps and batch sizes. Refuses to know what the stages do with them.
"""

from dataclasses import dataclass

from engine.training.optimizer import Rates
from engine.training.rollouts import RolloutPlan
from engine.training.trainer import Plan

CPU_MINUTES = 120.0
TARGET_SHARE, DRAFT_SHARE, ROLLOUT_SHARE, DISTILL_SHARE = 0.65, 0.05, 0.08, 0.13
LONG_ROW = 1024
DRAFT_RATES = Rates(matrix=0.02, other=3e-3, warmup_steps=20)
DISTILL_RATES = Rates(matrix=0.01, other=2e-3, warmup_steps=20, decay_from=0.3)


@dataclass(frozen=True, slots=True)
class Budget:
    """The plan of every stage that trains or generates."""

    target: Plan
    draft: Plan
    rollouts: RolloutPlan
    distill: Plan


def cpu_budget(max_minutes: float) -> Budget:
    """Share `max_minutes` of wall clock among the stages; a rest is left for evaluation."""
    return Budget(
        target=Plan(max_minutes=TARGET_SHARE * max_minutes, compile=True),
        draft=Plan(
            max_minutes=DRAFT_SHARE * max_minutes,
            length=LONG_ROW,
            compile=True,
            rates=DRAFT_RATES,
        ),
        rollouts=RolloutPlan(max_minutes=ROLLOUT_SHARE * max_minutes),
        distill=Plan(
            max_minutes=DISTILL_SHARE * max_minutes,
            length=LONG_ROW,
            compile=True,
            rates=DISTILL_RATES,
        ),
    )


def gpu_budget(max_minutes: float | None) -> Budget:
    """Bound the stages by tokens (about 100 M for the target), and by minutes where given."""
    share = cpu_budget(max_minutes) if max_minutes is not None else None
    target = Plan(
        max_minutes=share.target.max_minutes if share else None,
        max_steps=6000,
        batch_tokens=16_384,
        rates=Rates(warmup_steps=100, weight_decay=0.1),
        compile=True,
        autocast=True,
    )
    draft = Plan(
        max_minutes=share.draft.max_minutes if share else None,
        max_steps=2000,
        batch_tokens=16_384,
        length=LONG_ROW,
        rates=DRAFT_RATES,
        autocast=True,
    )
    distill = Plan(
        max_minutes=share.distill.max_minutes if share else None,
        max_steps=4000,
        batch_tokens=16_384,
        length=LONG_ROW,
        rates=DISTILL_RATES,
        autocast=True,
    )
    minutes = share.rollouts.max_minutes if share else None
    rollouts = RolloutPlan(max_minutes=minutes, batch=256, max_prompt_tokens=512, num_tokens=256)
    return Budget(target, draft, rollouts, distill)
