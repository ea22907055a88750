"""`auto` beside `off` and beside every static number of drafts, over the load.

Engines share the models and run in turn; where memory does not hold them all, the longest drafts
are left out, by name.
"""

from __future__ import annotations

import torch

from benchmarks.gpu.engines import (
    Plan,
    cache_bytes,
    in_turn,
    make_engine,
    models_of,
    steady_load,
)
from benchmarks.gpu.part import Notes
from benchmarks.gpu.throughput import ACCEPTANCE
from benchmarks.gpu.workshop import Workshop, free_memory

OVER_OFF_BAR, OVER_STATIC_BAR = 1.0, 0.98
STATIC = (1, 2, 3, 4)
# Of what is free: graphs, activations and logits need the rest.
_CACHE_SHARE = 0.6
# `auto` learns what drafts bring; it is measured when it knows.
_LEARNING_TOKENS = 48


def run(workshop: Workshop, notes: Notes) -> None:
    """Measure all lanes at every load, with the larger draft."""
    sizes = workshop.sizes
    draft = sizes.drafts[1]
    for concurrency in sizes.concurrency:
        lanes = [
            Plan(
                concurrency=concurrency,
                longest=sizes.longest,
                draft=draft if count != 0 else None,
                num_drafts=count,
                acceptance=ACCEPTANCE if count != 0 else None,
            )
            for count in (0, None, *STATIC)
        ]
        fitting = lanes[: _num_fitting(workshop, lanes)]
        if len(fitting) < 2:
            notes.detail("left_out", concurrency=concurrency, lanes=[p.name for p in lanes])
            continue
        _run_lanes(workshop, notes, fitting)
        if fitting != lanes:
            missing = [plan.name for plan in lanes[len(fitting) :]]
            notes.detail("left_out", concurrency=concurrency, lanes=missing)
        free_memory()


def _num_fitting(workshop: Workshop, lanes: list[Plan]) -> int:
    for plan in lanes:
        models_of(workshop, plan)
    if workshop.device.type != "cuda":
        return len(lanes)
    free_memory()
    free = int(torch.cuda.mem_get_info(workshop.device)[0] * _CACHE_SHARE)
    count = 0
    for plan in lanes:
        free -= cache_bytes(models_of(workshop, plan), plan)
        count += free >= 0
    return count


def _run_lanes(workshop: Workshop, notes: Notes, plans: list[Plan]) -> None:
    concurrency = plans[0].concurrency
    loads = {
        plan.name: steady_load(workshop, make_engine(workshop, plan), concurrency) for plan in plans
    }
    loads["auto"].warm_up(min(_LEARNING_TOKENS, 2 * workshop.sizes.answer))
    in_turn(list(loads.values()), workshop)
    for name, load in loads.items():
        notes.detail(
            "throughput",
            lane=name,
            concurrency=concurrency,
            rates=load.rates,
            tau=load.stats.tokens_per_target_pass,
        )
    auto, off = loads["auto"], loads["off"]
    ratios = [b / a for a, b in zip(off.rates, auto.rates, strict=True)]
    notes.add(
        f"auto over off, {concurrency} at once",
        auto.rate / off.rate,
        bar=OVER_OFF_BAR,
        spread=(min(ratios), max(ratios)),
    )
    static = [load for name, load in loads.items() if name not in ("auto", "off")]
    if static:
        best = max(static, key=lambda load: load.rate)
        notes.add(
            f"auto over the best static k, {concurrency} at once",
            auto.rate / best.rate,
            bar=OVER_STATIC_BAR,
        )
