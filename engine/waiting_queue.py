"""Who is served before whom; it knows priorities and arrival times, not blocks or budgets.

A request's key is `priority + arrival_time / ageing`: it never changes, yet works as ageing,
because a request that came one ageing period earlier stands level with one a priority better.
Background work stands behind everybody else, however old it gets.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import count

from engine.request import Request

Key = tuple[bool, float, int]


class ServiceOrder:
    """Keys of the living requests; lower is served first, first come first served inside one.

    Args:
        ageing_s: seconds of waiting that are worth one priority level.
    """

    def __init__(self, ageing_s: float) -> None:
        self._ageing_s = ageing_s
        self._arrivals = count()
        self._keys: dict[str, Key] = {}

    def enter(self, request: Request) -> None:
        """Give a request its key, for life."""
        urgency = request.priority + request.arrival_time / self._ageing_s
        key = request.is_background, urgency, next(self._arrivals)
        self._keys[request.request_id] = key

    def leave(self, request: Request) -> None:
        """Forget a request that ended."""
        self._keys.pop(request.request_id)

    def key(self, request: Request) -> Key:
        """Return the request's key."""
        return self._keys[request.request_id]


class RequestQueue:
    """Requests in service order; both those that wait and those that run stand in one."""

    def __init__(self, order: ServiceOrder) -> None:
        self._order = order
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        """Iterate over those present now, so that the queue may change meanwhile."""
        return iter(tuple(self._requests))

    def __reversed__(self) -> Iterator[Request]:
        return reversed(tuple(self._requests))

    def __contains__(self, request: Request) -> bool:
        index = self._index(request)
        return index < len(self._requests) and self._requests[index] is request

    def first(self, count: int) -> list[Request]:
        """Give the first ones, at most so many; of a long queue that is less than all."""
        return self._requests[:count]

    def add(self, request: Request) -> None:
        """Put a request at its place."""
        insort(self._requests, request, key=self._order.key)

    def discard(self, request: Request) -> None:
        """Take a request out if it is there."""
        if request in self:
            del self._requests[self._index(request)]

    def _index(self, request: Request) -> int:
        return bisect_left(self._requests, self._order.key(request), key=self._order.key)
