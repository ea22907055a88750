"""What the engine said of one call, taken down while it is told, and told again.

It knows the engine's deltas and nothing of where they are kept.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from engine.client.streams import RequestStream
from engine.errors import EngineError
from engine.provenance import PassProvenance
from engine.request import FinishReason, PassReport, Request, RequestDelta, TokenLogprobs


class KeptDelta(msgspec.Struct, array_like=True):
    """A delta without what is another's the next time: ids, times and errors.

    Attributes:
        place: of the request among those of the call.
    """

    place: int
    new_token_ids: list[int]
    logprobs: list[TokenLogprobs] | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    num_cached_tokens: int
    num_draft_tokens: int
    num_accepted_tokens: int
    drafter: str | None
    report: PassReport
    prompt_logprobs: list[TokenLogprobs] | None
    provenance: PassProvenance | None

    @classmethod
    def of(cls, place: int, delta: RequestDelta) -> KeptDelta:
        """Take what stays true of a delta."""
        names = cls.__struct_fields__[1:]
        return cls(place, *(getattr(delta, name) for name in names))

    def told_to(self, request_id: str) -> RequestDelta:
        """Give the delta again, to another request."""
        names = self.__struct_fields__[1:]
        return RequestDelta(request_id, **{name: getattr(self, name) for name in names})


_DIGEST_BYTES = 16
_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(list[KeptDelta])


class DamagedAnswerError(Exception):
    """What was kept of an answer has changed since."""


class AnswerSource(Protocol):
    """Who answers requests: the engine, or what it said before."""

    def submit(self, requests: Sequence[Request]) -> RequestStream:
        """Take requests; their deltas come as they are made."""

    def abort(self, request_ids: list[str]) -> None:
        """Forget requests."""


class Tape:
    """Takes an answer down.

    Args:
        keep: gets it, written, once it is whole.
    """

    def __init__(self, keep: Callable[[bytes], None]) -> None:
        self._keep = keep
        self._deltas: list[KeptDelta] = []

    def add(self, place: int, delta: RequestDelta) -> None:
        """Take down what a step added to the request at that place."""
        self._deltas.append(KeptDelta.of(place, delta))

    def end(self) -> None:
        """Hand over the answer; every choice has come to its own end."""
        told = _encode(self._deltas)
        self._keep(_digest(told) + told)


class Replay:
    """Answers as the engine once did.

    Args:
        deltas: of all requests of a call, in the order in which they came.
    """

    def __init__(self, deltas: Sequence[KeptDelta]) -> None:
        self._deltas = deltas

    @classmethod
    def read(cls, kept: bytes) -> Replay:
        """Read what a tape has written.

        Raises:
            DamagedAnswerError: no tape has written it.
        """
        digest, told = kept[:_DIGEST_BYTES], kept[_DIGEST_BYTES:]
        if digest != _digest(told):
            raise DamagedAnswerError("it is not what was written")
        return cls(_decoder.decode(told))

    def submit(self, requests: Sequence[Request]) -> RequestStream:
        """Give the deltas to requests of the same number and order."""
        stream = _ReplayStream(requests, self.abort)
        for delta in self._deltas:
            stream.put(delta.told_to(requests[delta.place].request_id))
        # Nobody gets here whose answer is whole; without it one that is not would never end.
        stream.put(EngineError("What was remembered of this answer is not whole."))
        return stream

    def abort(self, request_ids: list[str]) -> None:
        """Forget requests; nobody works for them."""


def _digest(told: bytes) -> bytes:
    return hashlib.blake2b(told, digest_size=_DIGEST_BYTES).digest()


class _ReplayStream(RequestStream):
    """A stream that lets others go on between its deltas, which are all there at once."""

    async def __anext__(self) -> RequestDelta:
        await asyncio.sleep(0)
        return await super().__anext__()
