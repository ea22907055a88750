"""Whose line is asked next: few at a time, and owners, and each owner's batches, take turns."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    owner: str
    batch: int
    turn: asyncio.Future[None]


class Turns:
    """Places for lines that are being asked.

    Args:
        num_places: lines at once.
    """

    def __init__(self, num_places: int) -> None:
        self._num_free = num_places
        self._of_owner: Counter[str] = Counter()
        self._of_batch: Counter[int] = Counter()
        self._waiting: list[_Waiter] = []

    @property
    def num_taken(self) -> int:
        """Lines that are being asked."""
        return self._of_batch.total()

    async def take(self, owner: str, batch: int) -> None:
        """Wait for a place: whoever has the fewest is next, and of these who waits for longest."""
        waiter = _Waiter(owner, batch, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._give()
        try:
            await waiter.turn
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            if not waiter.turn.cancelled():
                self.give_back(owner, batch)
            raise

    def give_back(self, owner: str, batch: int) -> None:
        """Let somebody else have a place."""
        self._num_free += 1
        self._of_owner[owner] -= 1
        self._of_batch[batch] -= 1
        # Who has none is not remembered.
        self._of_owner += Counter()
        self._of_batch += Counter()
        self._give()

    def _give(self) -> None:
        # Who was cancelled a moment ago has not had the time to leave.
        while self._num_free and (
            waiting := [waiter for waiter in self._waiting if not waiter.turn.done()]
        ):
            waiter = min(
                waiting,
                key=lambda waiter: (self._of_owner[waiter.owner], self._of_batch[waiter.batch]),
            )
            self._waiting.remove(waiter)
            self._num_free -= 1
            self._of_owner[waiter.owner] += 1
            self._of_batch[waiter.batch] += 1
            waiter.turn.set_result(None)
