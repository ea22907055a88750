"""What a plain decode step takes over the context and over the load, and its share of host work.

Rounds go over all points in turn, so that a drifting machine meets all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from benchmarks.growth.decoding import PLACES, DecodeBench, Steps
from benchmarks.growth.findings import Findings, Verdict, mark_of, percent_text, spread_text
from benchmarks.growth.growth_law import GrowthLaw, growth_law
from benchmarks.lanes import free_memory
from benchmarks.pages import Chart, Grid, Mark
from benchmarks.progress import show_progress
from benchmarks.report import rounded
from engine.config import EngineConfig
from engine.model_pair import ModelPair
from engine.tokenization import TokenBytes

EXPONENT_BAR = 1.1
HOST_BAR = 0.15


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that is measured.

    Attributes:
        name: in tables.
        config: settings to start from.
        models: the target.
        tokens: of its tokenizer; None = it has none.
    """

    name: str
    config: EngineConfig
    models: ModelPair
    tokens: TokenBytes | None


@dataclass(frozen=True, slots=True)
class Plan:
    """How often is measured.

    Attributes:
        repeats: rounds that count, behind one to warm up.
        num_steps: timed at each point of a round.
    """

    repeats: int
    num_steps: int


def over_context(
    subject: Subject, contexts: Sequence[int], loads: Sequence[int], plan: Plan
) -> Findings:
    """Measure steps over the context, at each load."""
    found = Findings()
    lines: dict[str, list[Mark]] = {}
    for load in loads:
        bench = DecodeBench(
            subject.config,
            subject.models,
            concurrency=load,
            contexts=contexts,
            num_steps=plan.num_steps,
        )
        points = [(load, context, 0.0) for context in contexts]
        rounds = _rounds(bench, points, plan, f"{load} at once, context")
        del bench
        free_memory()
        what = f"{load} at once"
        found.rows += [_row(subject, *p, r) for p, r in zip(points, rounds, strict=True)]
        found.grids.append(_context_grid(f"step over context, {subject.name}, {what}", rounds))
        marks = [mark_of(_context(r), [s.step_ms for s in r]) for r in rounds]
        law = _judge(found, f"step over context, {what}", marks)
        slope = f"{law.intercept:.2f} ms + {1e6 * law.slope:.0f} ns per token"
        lines |= {what: marks, f"{what}: {slope}": _fitted(law, marks)}
        host = [mark_of(_context(r), [s.host_ms for s in r]) for r in rounds]
        _judge(found, f"host work over context, {what}", host)
    chart = Chart("context", f"plain decode step, {subject.name}", "tokens of context", "ms", lines)
    found.charts.append(chart)
    return found


def over_concurrency(subject: Subject, loads: Sequence[int], context: int, plan: Plan) -> Findings:
    """Measure steps over the requests in them, at a fixed short context."""
    bench = DecodeBench(
        subject.config,
        subject.models,
        concurrency=max(loads),
        contexts=[context],
        num_steps=plan.num_steps,
    )
    points = [(load, context, 0.0) for load in loads]
    rounds = _rounds(bench, points, plan, "at once:")
    found = Findings(rows=[_row(subject, *p, r) for p, r in zip(points, rounds, strict=True)])
    title = f"step over concurrency, {subject.name}, context {context}"
    rows = [
        (
            str(load),
            spread_text([s.step_ms for s in r], 2),
            spread_text([s.host_ms for s in r], 3),
            spread_text([1000 * s.host_ms / load for s in r], 1),
            f"{1000 * load / median(s.step_ms for s in r):.0f}",
        )
        for load, r in zip(loads, rounds, strict=True)
    ]
    heads = ("at once", "step ms", "host ms", "host us per request", "tokens/s")
    found.grids.append(Grid(title, heads, rows))
    by_load = dict(zip(loads, rounds, strict=True))
    marks = [mark_of(float(n), [s.step_ms for s in r]) for n, r in by_load.items()]
    law = _judge(found, "step over concurrency", marks)
    host = [mark_of(float(n), [s.host_ms for s in r]) for n, r in by_load.items()]
    host_law = _judge(found, "host work over concurrency", host)
    lines = {
        "step": marks,
        f"step: {law.intercept:.2f} + {law.slope:.3f} ms each": _fitted(law, marks),
        "host": host,
        f"host: {host_law.intercept:.3f} + {host_law.slope:.4f} ms each": _fitted(host_law, host),
    }
    found.charts.append(
        Chart("concurrency", f"plain decode step, {subject.name}", "requests at once", "ms", lines)
    )
    return found


def host_share(
    subjects: Sequence[Subject],
    loads: Sequence[int],
    temperatures: Sequence[float],
    context: int,
    plan: Plan,
) -> Findings:
    """Measure what of a step is not the model's forward pass, detokenizing included."""
    found = Findings()
    for subject in subjects:
        bench = DecodeBench(
            subject.config,
            subject.models,
            concurrency=max(loads),
            contexts=[context],
            num_steps=plan.num_steps,
            tokens=subject.tokens,
        )
        points = [(load, context, t) for t in temperatures for load in loads]
        rounds = _rounds(bench, points, plan, f"{subject.name}:")
        del bench
        free_memory()
        rows = []
        for (load, _, temperature), r in zip(points, rounds, strict=True):
            found.rows.append(_row(subject, load, context, temperature, r))
            shares = [s.host_share for s in r]
            rows.append(_host_cells(f"T={temperature:g}, {load} at once", r))
            what = f"host work of a step, {subject.name}, T={temperature:g}, {load} at once"
            is_met = median(shares) < HOST_BAR
            found.verdicts.append(
                Verdict(
                    what=what,
                    bar=f"< {HOST_BAR:.0%}",
                    measured=percent_text(shares),
                    is_met=is_met,
                )
            )
        heads = ("", "step ms", *PLACES, "other", "detokenize", "host share")
        found.grids.append(Grid(f"parts of a step, ms, {subject.name}", heads, rows))
        if subject.tokens is None:
            found.notes.append(f"{subject.name} has no tokenizer: nothing is detokenized")
    return found


def _rounds(
    bench: DecodeBench, points: Sequence[tuple[int, int, float]], plan: Plan, what: str
) -> list[list[Steps]]:
    """Give the steps of each point, by round."""
    rounds: list[list[Steps]] = [[] for _ in points]
    with show_progress((plan.repeats + 1) * len(points)) as on_progress:
        for number in range(plan.repeats + 1):
            for place, (load, context, temperature) in enumerate(points):
                shown = f"{what} {context if what.endswith('context') else load}"
                on_progress(shown, float(number * len(points) + place))
                steps = bench.measure(load, context, temperature)
                # The first round fills the contexts, and warms up.
                rounds[place] += [steps] if number else []
    return rounds


def _context(rounds: Sequence[Steps]) -> float:
    return median(steps.context for steps in rounds)


def _judge(found: Findings, what: str, marks: Sequence[Mark]) -> GrowthLaw:
    law = growth_law(marks)
    found.verdicts.append(
        Verdict(
            what=f"{what}: exponent of growth",
            bar=f"<= {EXPONENT_BAR:g}",
            measured=law.exponent_text,
            is_met=law.is_at_most(EXPONENT_BAR),
        )
    )
    return law


def _fitted(law: GrowthLaw, marks: Sequence[Mark]) -> list[Mark]:
    return [Mark(m.x, y, y, y) for m in marks for y in [law.at(m.x)]]


def _context_grid(title: str, rounds: Sequence[Sequence[Steps]]) -> Grid:
    rows = [
        (
            f"{_context(r):.0f}",
            spread_text([s.step_ms for s in r], 2),
            spread_text([s.step_ms - s.host_ms for s in r], 2),
            spread_text([s.host_ms for s in r], 3),
        )
        for r in rounds
    ]
    return Grid(title, ("context", "step ms", "forward ms", "host ms"), rows)


def _host_cells(name: str, rounds: Sequence[Steps]) -> list[str]:
    parts = {name: median(steps.part_ms(name) for steps in rounds) for name in PLACES}
    step_ms = median(1000 * fmean(steps.step_s) for steps in rounds)
    detokenize_ms = median(1000 * fmean(steps.detokenize_s) for steps in rounds)
    return [
        name,
        spread_text([steps.step_ms for steps in rounds], 2),
        *(f"{value:.3f}" for value in parts.values()),
        f"{step_ms - sum(parts.values()):.3f}",
        f"{detokenize_ms:.3f}",
        percent_text([steps.host_share for steps in rounds]),
    ]


def _row(
    subject: Subject, load: int, context: int, temperature: float, rounds: Sequence[Steps]
) -> dict[str, Any]:
    """Give a point's medians of each round, for JSON."""
    return {
        "model": subject.name,
        "concurrency": load,
        "prompt_tokens": context,
        "temperature": temperature,
        "context": rounded(_context(rounds)),
        "step_ms": rounded([steps.step_ms for steps in rounds]),
        "host_ms": rounded([steps.host_ms for steps in rounds]),
        "host_share": rounded([steps.host_share for steps in rounds]),
        "detokenize_ms": rounded([1000 * fmean(steps.detokenize_s) for steps in rounds]),
        "parts_ms": {name: rounded([steps.part_ms(name) for steps in rounds]) for name in PLACES},
    }
