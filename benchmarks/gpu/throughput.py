"""Tokens per second over the load, without speculation and with drafts that dice accept."""

from __future__ import annotations

from benchmarks.gpu.engines import Plan, SteadyLoad, in_turn, make_engine, steady_load
from benchmarks.gpu.part import Notes
from benchmarks.gpu.workshop import Workshop, free_memory

# With four drafts, dice of 0.742 give a tau of 3.0: (1 - a^5) / (1 - a).
ACCEPTANCE, NUM_DRAFTS = 0.742, 4
EFFICIENCY_BARS = {1: 0.85, 8: 0.85}
SPEED_UP_BARS = {64: 1.6}


def run_plain(workshop: Workshop, notes: Notes) -> None:
    """Measure tokens per second without speculation over all loads."""
    sizes = workshop.sizes
    plan = Plan(concurrency=max(sizes.concurrency), longest=sizes.longest)
    core = make_engine(workshop, plan)
    for concurrency in sizes.concurrency:
        load = steady_load(workshop, core, concurrency)
        in_turn([load], workshop)
        notes.add(
            f"8B without drafts, {concurrency} at once", load.rate, "tokens/s", spread=load.spread
        )
        notes.detail("throughput", lane="off", concurrency=concurrency, rates=load.rates)
    del core, load
    free_memory()


def run_synthetic(workshop: Workshop, notes: Notes) -> None:
    """Measure what drafts bring and cost at a tau of 3, for a small and a larger draft."""
    sizes = workshop.sizes
    for draft in dict.fromkeys(sizes.drafts):
        for concurrency in sizes.synthetic_concurrency:
            off = Plan(concurrency=concurrency, longest=sizes.longest)
            on = Plan(
                concurrency=concurrency,
                longest=sizes.longest,
                draft=draft,
                num_drafts=NUM_DRAFTS,
                acceptance=ACCEPTANCE,
            )
            lanes = [
                steady_load(workshop, make_engine(workshop, plan), concurrency)
                for plan in (off, on)
            ]
            in_turn(lanes, workshop)
            _note_pair(notes, draft, concurrency, *lanes)
            del lanes
            free_memory()


def _note_pair(notes: Notes, draft: str, concurrency: int, off: SteadyLoad, on: SteadyLoad) -> None:
    tau = on.stats.tokens_per_target_pass
    ratios = [b / a for a, b in zip(off.rates, on.rates, strict=True)]
    speed_up = on.rate / off.rate
    where = f"{draft}, k={NUM_DRAFTS}, {concurrency} at once"
    notes.add(
        f"S of {where}",
        speed_up,
        bar=SPEED_UP_BARS.get(concurrency),
        spread=(min(ratios), max(ratios)),
    )
    notes.add(
        f"S/tau of {where}",
        speed_up / tau,
        bar=EFFICIENCY_BARS.get(concurrency),
        spread=(min(ratios) / tau, max(ratios) / tau),
    )
    notes.detail(
        "synthetic",
        draft=draft,
        num_drafts=NUM_DRAFTS,
        acceptance=ACCEPTANCE,
        concurrency=concurrency,
        tau=tau,
        off=off.rates,
        on=on.rates,
    )
