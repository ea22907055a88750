"""Ranks draft positions of all requests and admits them while tokens per second rise.

Knows chances and prices; refuses to know where either comes from. Pure Python, and on the path of
every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from engine.speculative.host_times import Drafting
from engine.speculative.pass_prices import PassPrices

# Speculation must promise at least this much before the plain path is left, and less to stay.
LEAST_GAIN = 1.02
GAIN_TO_STAY = 0.99


class Slot(NamedTuple):
    """One draft position of a request, or a whole chain of several that are alike.

    Slots sort in the order in which they are admitted.

    Attributes:
        rank: minus the chance by draft; never below that of the position before.
        group: of the requests.
        position: in the draft.
        tokens: expected to be accepted.
        rows: expected to be verified at this position and the next, each a row of the target.
        passes: expected to be drafted by a model at the same positions, one in each pass.
        lag_seconds: what catching up costs first.
    """

    rank: float
    group: int
    position: int
    tokens: float
    rows: tuple[float, ...]
    passes: tuple[float, ...] = ()
    lag_seconds: float = 0.0


class Admission(NamedTuple):
    """What was admitted.

    Attributes:
        slots: in the order in which they were.
        tokens_per_second: expected of the step.
        speed_up: the same over that of a step without drafts.
    """

    slots: Sequence[Slot]
    tokens_per_second: float
    speed_up: float


def admit(
    slots: Sequence[Slot],
    num_seqs: int,
    prices: PassPrices,
    max_positions: int,
    least_gain: float = LEAST_GAIN,
    drafting: Drafting = Drafting.GATED,
) -> Admission:
    """Admit slots, best first, up to where expected tokens per second are highest.

    Args:
        slots: of all requests, in any order.
        num_seqs: requests, each of which emits a token of its own.
        prices: what passes cost.
        max_positions: beyond the last position of a draft.
        least_gain: without so much of a speed-up nothing is admitted.
        drafting: how models would draft.
    """
    passes = [prices.draft_pass(count, drafting) for count in range(num_seqs + 2)]
    drafted = [0.0] * max_positions
    verified = [0.0] * max_positions
    tokens = rows = float(num_seqs)
    longest = 1.0
    plain = tokens / prices.plain_step(num_seqs)
    host_seconds = prices.host.of(num_seqs, drafting)
    nothing = Admission([], plain, 1.0)
    best = nothing if least_gain > 1.0 else Admission([], 0.0, 0.0)
    pass_seconds = lag_seconds = 0.0
    ordered = sorted(slots)
    for count, slot in enumerate(ordered, 1):
        tokens += slot.tokens
        rows += sum(slot.rows)
        for position, more in enumerate(slot.passes, slot.position):
            before = drafted[position]
            drafted[position] = after = before + more
            pass_seconds += _between(passes, after) - _between(passes, before)
        for position, more in enumerate(slot.rows, slot.position):
            before = verified[position]
            verified[position] = after = before + more
            # Of two chains that get so far half the time, one mostly does.
            longest += min(after, 1.0) - min(before, 1.0)
        lag_seconds += slot.lag_seconds
        step_seconds = host_seconds + prices.target_pass(num_seqs, rows, longest)
        if pass_seconds:
            step_seconds += prices.drafting(pass_seconds, drafting) + lag_seconds
        if tokens / step_seconds > best.tokens_per_second:
            rate = tokens / step_seconds
            best = Admission(ordered[:count], rate, rate / plain)
    return best if best.speed_up >= least_gain else nothing


def _between(values: Sequence[float], place: float) -> float:
    low = int(place)
    return values[low] + (values[low + 1] - values[low]) * (place - low)
