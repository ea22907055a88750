"""Finds drafts that are named or loaded and cannot be used, before the first request comes.

It knows the settings, the loaded models and what their passes cost. What only shows while serving,
`engine/speculative/idle_watch.py` notices.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from engine.config import LAYER_SKIP, TLI, EngineConfig
from engine.model_pair import ModelPair
from engine.speculative.admission import LEAST_GAIN
from engine.speculative.step_costs import StepCosts
from engine.vocabularies import choose_method

logger = logging.getLogger(__name__)

SAVES_MEMORY = "--speculation off saves its memory"
NEEDS_NOTHING = "--speculation off leaves it out"


def warn_of_drafts(
    config: EngineConfig, models: ModelPair, max_model_len: int, costs: StepCosts | None
) -> tuple[str, ...]:
    """Log why drafts will not be used, or hardly, a line for each reason.

    Args:
        config: all settings.
        models: what is loaded.
        max_model_len: tokens that the target can hold per request.
        costs: of passes, where they decide about drafts.

    Returns:
        The lines.
    """
    found = tuple(_find(config, models, max_model_len, costs))
    for line in found:
        logger.warning(line)
    return found


def advice_for(models: ModelPair) -> str:
    """Say what to do about a model that drafts nothing."""
    return SAVES_MEMORY if models.draft is not None else NEEDS_NOTHING


def draft_name(models: ModelPair) -> str:
    """Name the model that drafts."""
    return LAYER_SKIP if models.draft is None else models.draft.name


def _find(
    config: EngineConfig, models: ModelPair, max_model_len: int, costs: StepCosts | None
) -> Iterator[str]:
    drafters = ",".join(config.speculation.drafters)
    if not drafters:
        return
    if config.speculation.is_off:
        yield f"draft_not_used draft={drafters} reason=speculation_off"
        return
    limits = config.scheduler
    if limits.step_tokens <= limits.max_num_seqs:
        verb = "not" if limits.step_tokens == 1 else "hardly"
        yield (
            f"draft_{verb}_used draft={drafters} reason=small_steps "
            f"max_num_batched_tokens={limits.step_tokens} "
            f"max_num_seqs={limits.max_num_seqs} "
            'advice="a step that is full of requests has no room for drafts"'
        )
    yield from _of_model(models, max_model_len)
    if costs is not None and costs.draft is not None:
        best = best_speedup(costs, config.speculation.num_draft_tokens)
        if best < LEAST_GAIN:
            yield (
                f"draft_not_used draft={draft_name(models)} reason=too_slow "
                f'best_speedup={best:.2f} advice="{advice_for(models)}"'
            )


def _of_model(models: ModelPair, max_model_len: int) -> Iterator[str]:
    draft, foreign = models.draft, models.foreign
    if draft is None:
        return
    if draft.max_model_len < max_model_len:
        yield (
            f"draft_hardly_used draft={draft.name} reason=short_context "
            f"draft_max_len={draft.max_model_len} max_model_len={max_model_len} "
            'advice="it drafts nothing beyond its context; lower --max-model-len if that is enough"'
        )
    if foreign is not None and foreign.method == TLI:
        overlap = foreign.bridge.overlap
        if choose_method(overlap) != TLI:
            yield (
                f"draft_hardly_used draft={draft.name} reason=few_common_tokens "
                f"of_draft={overlap.of_draft:.2f} of_target={overlap.of_target:.2f} "
                'advice="--draft-vocabulary auto takes its text"'
            )


def best_speedup(costs: StepCosts, max_drafts: int) -> float:
    """Give tokens per second over plain decoding of one request whose drafts are all accepted."""
    target = costs.target.by_rows(1, max_drafts + 1)
    return max(
        (count + 1) * target[1] / (count * costs.draft_pass(1) + target[count + 1])
        for count in range(1, max_drafts + 1)
    )
