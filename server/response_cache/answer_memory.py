"""Answers in memory: how many bytes, for how long, and who has to go first; no disk, no engine."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import NamedTuple

# What an entry takes beside its answer: its key, its places in tables and on disk.
ENTRY_BYTES = 256


class Entry(NamedTuple):
    """One answer.

    Attributes:
        answer: as it was written.
        created: when it was made, in Unix seconds.
    """

    answer: bytes
    created: float

    @property
    def num_bytes(self) -> int:
        """What it counts for."""
        return len(self.answer) + ENTRY_BYTES


class AnswerMemory:
    """Keeps what was used last.

    Args:
        max_bytes: of all entries.
        max_age_s: seconds for which an answer is given.
        clock: gives Unix seconds.

    Attributes:
        num_bytes: of all entries.
        num_evicted: entries that went because there was no room.
        num_expired: entries that went because they were too old.
    """

    def __init__(self, max_bytes: int, max_age_s: float, clock: Callable[[], float]) -> None:
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        # The same keys, oldest answer first.
        self._by_age: OrderedDict[bytes, float] = OrderedDict()
        self.num_bytes = 0
        self.num_evicted = 0
        self.num_expired = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def get(self, key: bytes) -> Entry | None:
        """Give an entry that is not too old, which is then the last that would go."""
        entry = self._entries.get(key)
        if entry is None or self._is_too_old(entry.created):
            return None
        self._entries.move_to_end(key)
        return entry

    def put(self, key: bytes, entry: Entry) -> bool:
        """Keep an entry in the place of an older one; says whether it fits at all."""
        if entry.num_bytes > self._max_bytes:
            return False
        self.drop(key)
        self._take(key, entry)
        return True

    def restore(self, key: bytes, entry: Entry) -> bool:
        """Keep an entry of an earlier run, behind all that are there; says whether it is kept.

        Call `settle` behind the last one.
        """
        has_room = self.num_bytes + entry.num_bytes <= self._max_bytes
        if key in self._entries or not has_room or self._is_too_old(entry.created):
            return False
        self._take(key, entry)
        self._entries.move_to_end(key, last=False)
        return True

    def settle(self) -> None:
        """Put what was restored in its order of age."""
        self._by_age = OrderedDict(sorted(self._by_age.items(), key=itemgetter(1)))

    def drop(self, key: bytes) -> None:
        """Forget an entry, if it is there."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            del self._by_age[key]
            self.num_bytes -= entry.num_bytes

    def shrink(self) -> Iterator[bytes]:
        """Forget what is too old, and then what there is no room for; gives each key."""
        while self._by_age:
            key, created = next(iter(self._by_age.items()))
            if not self._is_too_old(created):
                break
            self.num_expired += 1
            self.drop(key)
            yield key
        while self.num_bytes > self._max_bytes:
            key = next(iter(self._entries))
            self.num_evicted += 1
            self.drop(key)
            yield key

    def _take(self, key: bytes, entry: Entry) -> None:
        self._entries[key] = entry
        self._by_age[key] = entry.created
        self.num_bytes += entry.num_bytes

    def _is_too_old(self, created: float) -> bool:
        return self._clock() - created > self._max_age_s
