"""Drafters that raised: they are switched off, and the engine goes on without them.

Drafts only ever save time, so an error in one of them is no reason to lose a request: the words are
the target's with or without it. Memory that ran out is another matter, and nobody's fault here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from engine.memory_errors import is_out_of_memory

# Who decides how much everybody drafts; without it nobody does.
CONTROLLER = "controller"

logger = logging.getLogger(__name__)


class DrafterFaults:
    """Remembers who raised.

    Attributes:
        counts: how often, by drafter.
        warnings: what was logged of it.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.warnings: list[str] = []

    def is_off(self, drafter: str) -> bool:
        """Whether a drafter is not to be asked any more."""
        return drafter in self.counts

    @contextmanager
    def watching(self, drafter: str) -> Iterator[None]:
        """Switch a drafter off if what is done inside raises; what follows inside is left out."""
        try:
            yield
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self._note(drafter, error)

    def _note(self, drafter: str, error: Exception) -> None:
        self.counts[drafter] = self.counts.get(drafter, 0) + 1
        warning = f"drafter_switched_off drafter={drafter} error={type(error).__name__}: {error}"
        self.warnings.append(warning)
        logger.error(warning, exc_info=error)
