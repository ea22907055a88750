"""Makes slots of what could be drafted: known tokens, and chains of a model
that end where the plan says or where their gate does. Pure Python.
"""

from __future__ import annotations

from engine.speculative.admission import Slot
from engine.speculative.claims import Weighed
from engine.speculative.survival import Prospect


def known_slots(group: int, known: Weighed) -> list[Slot]:
    """Give the positions of a draft that needs no model."""
    return [
        Slot(-chance, group, place, tokens=chance, rows=(1.0,))
        for place, chance in enumerate(known.survival)
    ]


def model_slots(group: int, prospect: Prospect, num_members: int, lag_seconds: float) -> list[Slot]:
    """Give the positions of chains that end where the plan says."""
    slots: list[Slot] = []
    count = float(num_members)
    for place, chance in enumerate(prospect.accepted):
        slots.append(Slot(-chance, group, place, count * chance, (count,), (count,), lag_seconds))
        lag_seconds = 0.0
    return slots


def chain_slot(group: int, prospect: Prospect, num_members: int, lag_seconds: float) -> Slot:
    """Give the chains of alike requests as one; their gate decides how far each of them goes."""
    accepted = sum(prospect.accepted)
    rows, passes = (
        tuple(num_members * chance for chance in chances)
        for chances in (prospect.verified, prospect.drafted)
    )
    rank = -accepted / sum(prospect.drafted)
    if lag_seconds:
        # Who has nothing to catch up comes first.
        rank /= 2.0
    return Slot(rank, group, 0, num_members * accepted, rows, passes, lag_seconds)
