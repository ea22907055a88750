"""Remembers responses: those that have ended, within bounds, and those that run by themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import msgspec

from engine.errors import InvalidRequestError
from server.bounded_store import BoundedStore
from server.errors import NotStoredError
from server.responses.background import BackgroundRun
from server.responses.items import Item
from server.responses.response_object import ResponseObject
from server.responses.run import ResponseRun

MAX_ENTRIES = 10_000
MAX_BYTES = 256 * 2**20
_ITEMS_PER_ENTRY = 10
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response that has ended.

    Attributes:
        body: the response object.
        input_items: the whole conversation that it answered, oldest first.
        new_items: what it added to the conversation: its own input and its output.
        frames: its events as they were streamed; None where none are kept.
    """

    body: ResponseObject
    input_items: Sequence[Item]
    new_items: Sequence[Item]
    frames: Sequence[bytes] | None


@dataclass(frozen=True, slots=True)
class RunningResponse:
    """A response that runs in the background.

    Attributes:
        background: makes it.
        input_items: the whole conversation that it answers, oldest first.
    """

    background: BackgroundRun
    input_items: Sequence[Item]


class ResponseStore:
    """The responses that can be asked for by their ids.

    Args:
        max_entries: responses kept at most, beside those that still run.
        max_bytes: of what is kept, as it would be sent.
    """

    def __init__(self, *, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        self._ended: BoundedStore[StoredResponse] = BoundedStore(
            max_entries=max_entries, max_bytes=max_bytes
        )
        # Items lie in their responses too; here they are found by their own ids.
        self._items: BoundedStore[Item] = BoundedStore(
            max_entries=_ITEMS_PER_ENTRY * max_entries, max_bytes=max_bytes
        )
        self._running: dict[str, RunningResponse] = {}

    @classmethod
    def of_share(cls, num_shares: int) -> ResponseStore:
        """Make one of so many that share the room."""
        return cls(max_entries=max(1, MAX_ENTRIES // num_shares), max_bytes=MAX_BYTES // num_shares)

    def __len__(self) -> int:
        return len(self._ended) + len(self._running)

    @property
    def running_ids(self) -> list[str]:
        """The ids of the responses that run in the background, the oldest first."""
        return list(self._running)

    def begin(self, background: BackgroundRun, input_items: Sequence[Item]) -> None:
        """Remember a response that runs by itself, until it ends."""
        running = RunningResponse(background, input_items)
        self._running[background.run.response_id] = running

    def keep(self, run: ResponseRun, input_items: Sequence[Item], *, num_new_items: int) -> None:
        """Remember a response that has ended.

        Args:
            run: the response.
            input_items: the whole conversation that it answered.
            num_new_items: how many of them, at the end, no earlier response holds.
        """
        self._running.pop(run.response_id, None)
        body = run.as_object()
        new_items = [*input_items[len(input_items) - num_new_items :], *body["output"]]
        num_bytes = len(_encode(body)) + sum(map(len, run.frames or ()))
        for item in new_items:
            item_bytes = len(_encode(item))
            num_bytes += item_bytes
            # An id that a caller gave to an item of its own does not hide an earlier item.
            if self._items.get(item["id"]) is None:
                self._items.put(item["id"], item, item_bytes)
        stored = StoredResponse(body, input_items, new_items, run.frames)
        self._ended.put(run.response_id, stored, num_bytes)

    def show(self, response_id: str) -> ResponseObject:
        """Give a response as it is now.

        Raises:
            NotStoredError: there is none of that id.
        """
        found = self._find(response_id)
        return found.body if isinstance(found, StoredResponse) else found.background.run.as_object()

    def stream(self, response_id: str, first: int) -> AsyncIterator[bytes]:
        """Give the events of a response from a number on, as they come.

        Raises:
            NotStoredError: there is none of that id.
            InvalidRequestError: its events are not kept.
        """
        found = self._find(response_id)
        frames = (found if isinstance(found, StoredResponse) else found.background.run).frames
        if frames is None:
            raise InvalidRequestError(
                "stream: only responses that were created with background and stream can be "
                "streamed again.",
                param="stream",
                code="invalid_value",
            )
        if isinstance(found, RunningResponse):
            return found.background.stream(first)
        return _each(frames[first:])

    def delete(self, response_id: str) -> None:
        """Forget a response; one that runs is given up.

        Raises:
            NotStoredError: there is none of that id.
        """
        found = self._find(response_id)
        if isinstance(found, RunningResponse):
            found.background.cancel()
        stored = self._ended.pop(response_id)
        for item in stored.new_items if stored is not None else ():
            if self._items.get(item["id"]) is item:
                self._items.pop(item["id"])

    def cancel(self, response_id: str) -> ResponseObject:
        """Give up a response that runs in the background; one that has ended stays as it is.

        Raises:
            NotStoredError: there is none of that id.
            InvalidRequestError: it was not created to run in the background.
        """
        found = self._find(response_id)
        if isinstance(found, RunningResponse):
            found.background.cancel()
        elif not found.body["background"]:
            raise InvalidRequestError(
                "Cannot cancel a synchronous response; only those created with background can be.",
                param="response_id",
                code="invalid_value",
            )
        return self.show(response_id)

    def input_items(self, response_id: str) -> Sequence[Item]:
        """Give the whole conversation that a response answers, oldest first.

        Raises:
            NotStoredError: there is none of that id.
        """
        return self._find(response_id).input_items

    def conversation(self, previous_response_id: str | None) -> list[Item]:
        """Give the conversation that a new response goes on with, oldest first.

        Raises:
            NotStoredError: the previous response is not stored.
            InvalidRequestError: it has not ended.
        """
        if previous_response_id is None:
            return []
        if previous_response_id in self._running:
            raise InvalidRequestError(
                f"Previous response with id {previous_response_id!r} has not ended yet.",
                param="previous_response_id",
                code="previous_response_not_completed",
            )
        previous = self._ended.get(previous_response_id)
        if previous is None:
            raise NotStoredError(
                f"Previous response with id {previous_response_id!r} not found.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        return [*previous.input_items, *previous.body["output"]]

    def find_item(self, item_id: str) -> Item | None:
        """Give an item of a response that has ended; None when there is none of that id."""
        return self._items.get(item_id)

    def _find(self, response_id: str) -> StoredResponse | RunningResponse:
        found = self._running.get(response_id) or self._ended.get(response_id)
        if found is None:
            raise NotStoredError(
                f"Response with id {response_id!r} not found.",
                param="response_id",
                code="response_not_found",
            )
        return found


async def _each(frames: Sequence[bytes]) -> AsyncIterator[bytes]:
    for frame in frames:
        yield frame
