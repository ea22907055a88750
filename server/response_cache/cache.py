"""Answers that are remembered: who may be answered from memory, and what is kept for whom.

It lives on the event loop; only the file is another thread's (`server.response_cache.disk`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engine.door import ModelInfo
from engine.request import Request
from engine.sampling_params import SamplingParams
from server.keys import Caller
from server.response_cache.answer_key import answer_key
from server.response_cache.answer_memory import AnswerMemory, Entry
from server.response_cache.cache_policy import Outcome, current_policy
from server.response_cache.database import Row
from server.response_cache.disk import Disk
from server.response_cache.model_identity import ModelIdentity
from server.response_cache.tape import DamagedAnswerError, Replay, Tape

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recall:
    """What a call is to its server's memory.

    Attributes:
        replay: the answer, where it is known.
        tape: takes the answer down, where it may be remembered.
    """

    replay: Replay | None = None
    tape: Tape | None = None


NOTHING = Recall()


class ResponseCache:
    """Remembers answers of one server.

    Args:
        model: which one answers.
        max_bytes: of all answers, in memory and again on disk.
        max_age_s: seconds for which an answer is given.
        path: of the file; None = memory alone.
        clock: gives Unix seconds.

    Attributes:
        outcomes: calls that were answered, by whether their answer was known.
        num_stores: answers kept.
        is_restored: whether all that the file had is in memory.
    """

    def __init__(
        self,
        model: ModelIdentity,
        *,
        max_bytes: int,
        max_age_s: float,
        path: Path | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._model = model
        self._memory = AnswerMemory(max_bytes, max_age_s, clock)
        self._clock = clock
        self._path = path
        self._disk: Disk | None = None
        self.outcomes: Counter[Outcome] = Counter()
        self.num_stores = 0
        self.is_restored = asyncio.Event()

    @property
    def num_entries(self) -> int:
        """Answers that are remembered."""
        return len(self._memory)

    @property
    def num_bytes(self) -> int:
        """What they take."""
        return self._memory.num_bytes

    @property
    def num_evicted(self) -> int:
        """Answers forgotten for want of room."""
        return self._memory.num_evicted

    @property
    def num_expired(self) -> int:
        """Answers forgotten because of their age."""
        return self._memory.num_expired

    def start(self) -> None:
        """Take up what is on disk, in the background; on the event loop."""
        if self._path is None:
            self.is_restored.set()
            return
        loop = asyncio.get_running_loop()
        self._disk = Disk(self._path, partial(_call_soon, loop, self._restore))
        self._disk.start()

    async def close(self) -> None:
        """Wait until everything is on disk."""
        if self._disk is not None:
            await asyncio.to_thread(self._disk.close)

    def count(self, outcome: Outcome) -> None:
        """Count a call that is answered."""
        self.outcomes[outcome] += 1

    def recall(
        self,
        prompts: Sequence[Sequence[Request]],
        params: SamplingParams,
        *,
        info: ModelInfo,
        caller: Caller,
        shown_ids: Collection[int],
    ) -> Recall:
        """Look a call up, as its headers allow.

        Args:
            prompts: the requests of each prompt, made at the door.
            params: as they were before the door drew a seed.
            info: what the engine says of its model.
            caller: whose answers may be given.
            shown_ids: see `Generation`.
        """
        policy = current_policy.get()
        if policy is None or not policy.may_store or not _is_repeatable(params, info):
            return NOTHING
        key = answer_key(
            prompts, model=self._model.of(info), tenant=caller.tenant, shown_ids=shown_ids
        )
        replay = self._find(key) if policy.may_read else None
        policy.outcome = Outcome.MISS if replay is None else Outcome.HIT
        return Recall(tape=Tape(partial(self._keep, key))) if replay is None else Recall(replay)

    def _find(self, key: bytes) -> Replay | None:
        self._shrink()
        entry = self._memory.get(key)
        if entry is None:
            return None
        try:
            replay = Replay.read(entry.answer)
        except DamagedAnswerError as error:
            logger.error("response_cache_entry_damaged error=%s", error)
            self._forget(key)
            return None
        if self._disk is not None:
            self._disk.touch(key, self._clock())
        return replay

    def _keep(self, key: bytes, answer: bytes) -> None:
        now = self._clock()
        if not self._memory.put(key, Entry(answer, now)):
            return
        self.num_stores += 1
        if self._disk is not None:
            self._disk.put(Row(key, answer, now, now))
        self._shrink()

    def _shrink(self) -> None:
        for key in self._memory.shrink():
            self._drop_from_disk(key)

    def _forget(self, key: bytes) -> None:
        self._memory.drop(key)
        self._drop_from_disk(key)

    def _drop_from_disk(self, key: bytes) -> None:
        if self._disk is not None:
            self._disk.drop(key)

    def _restore(self, rows: list[Row]) -> None:
        """Take what the file had, what was used last first; nothing means that this was all."""
        for row in rows:
            if not self._memory.restore(row.key, Entry(row.answer, row.created)):
                self._drop_unless_known(row.key)
        if not rows:
            self._memory.settle()
            self.is_restored.set()
            logger.info(
                "response_cache_restored path=%s entries=%d bytes=%d",
                self._path,
                self.num_entries,
                self.num_bytes,
            )

    def _drop_unless_known(self, key: bytes) -> None:
        """Leave alone what is in memory already, and newer."""
        if key not in self._memory:
            self._drop_from_disk(key)


def _is_repeatable(params: SamplingParams, info: ModelInfo) -> bool:
    """Whether the same request can have one answer only, and it is the model's."""
    is_certain = params.is_greedy or params.seed is not None
    return is_certain and not info.synthetic_acceptance


def _call_soon(
    loop: asyncio.AbstractEventLoop, hear: Callable[[list[Row]], None], rows: list[Row]
) -> None:
    """Tell the event loop from another thread; one that is closed has nobody who would listen."""
    try:
        loop.call_soon_threadsafe(hear, rows)
    except RuntimeError:
        logger.debug("response_cache_closed_while_reading")
