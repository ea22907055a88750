"""Which requests crash the engine: those that were being computed when it ended, by what they ask.

A request that is computed in two crashed steps is refused from then on. Where several of the
second step had been in a crashed one before, nobody can tell which of them it is: these are tried
one at a time, and whoever crashes the engine again is refused. Who is served to the end is cleared.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from engine.errors import EngineRestartingError, RefusedRequestError
from engine.request import Request

# Of 16 bytes each.
_MAX_DIGESTS = 1024
_DIGEST_BYTES = 16
_MAX_LEFT = 256
_encode = msgspec.msgpack.Encoder().encode


@dataclass(slots=True)
class _Record:
    """What is known of requests that ask for the same.

    Attributes:
        num_crashes: crashed steps that computed one of them.
        is_refused: whether they are no longer let in.
    """

    num_crashes: int = 0
    is_refused: bool = False


class Suspects:
    """Remembers who was there when the engine crashed.

    Args:
        max_digests: requests that are remembered at most; who crashed longest ago goes first.
    """

    def __init__(self, max_digests: int = _MAX_DIGESTS) -> None:
        self._max_digests = max_digests
        self._records: OrderedDict[bytes, _Record] = OrderedDict()
        self._open: dict[str, Request] = {}
        self._left: OrderedDict[str, tuple[bytes, str]] = OrderedDict()

    def check(self, requests: Sequence[Request]) -> None:
        """Check that requests may be let in.

        Raises:
            RefusedRequestError: they crashed the engine.
            EngineRestartingError: one of those who may have crashed it is being tried.
        """
        if not self._records:
            return
        digests = {digest_of(request) for request in requests}
        records = [record for d in digests if (record := self._records.get(d)) is not None]
        for record in records:
            if record.is_refused:
                raise RefusedRequestError(
                    f"This request was being computed in {record.num_crashes} steps that crashed "
                    "the engine, so it is refused. Change its prompt or its settings, and tell "
                    "whoever runs this server."
                )
        if any(record.num_crashes > 1 for record in records) and self._is_trying_others(digests):
            raise EngineRestartingError(
                "This request is one of several that may have crashed the engine, and these are "
                "tried one at a time; try again soon."
            )

    def enter(self, request: Request) -> None:
        """Note that a request was let in."""
        self._open[request.request_id] = request

    def leave(self, request_id: str, *, is_served: bool) -> None:
        """Note that a request has ended, or that its caller gave it up; unknown ids are fine."""
        request = self._open.pop(request_id, None)
        if request is None:
            return
        if is_served:
            if self._records:
                self._records.pop(digest_of(request), None)
            return
        # It may still be what a step hangs in.
        self._left[request_id] = digest_of(request), _name(request)
        if len(self._left) > _MAX_LEFT:
            self._left.popitem(last=False)

    def forget_left(self) -> None:
        """Note that nothing is being computed: who was given up did no harm."""
        self._left.clear()

    def blame(self, step: frozenset[str]) -> list[str]:
        """Count a crash against those in the step, and forget who was there.

        Args:
            step: ids of who was in the last step; of these, who has ended is not meant.

        Returns:
            Who was being computed, by the ids that their callers know.
        """
        asked = [self._open[i] for i in sorted(step & self._open.keys())]
        found = [(digest_of(request), _name(request)) for request in asked]
        found += [self._left[i] for i in sorted(step & self._left.keys())]
        digests = {digest for digest, _ in found}
        records = [self._remember(digest) for digest in digests]
        most = max((record.num_crashes for record in records), default=0)
        leaders = [record for record in records if record.num_crashes == most]
        for record in records:
            record.num_crashes += 1
        if most and len(leaders) == 1:
            leaders[0].is_refused = True
        self._open.clear()
        self._left.clear()
        return list(dict.fromkeys(name for _, name in found))

    def _is_trying_others(self, digests: set[bytes]) -> bool:
        for digest in {digest_of(request) for request in self._open.values()} - digests:
            record = self._records.get(digest)
            if record is not None and record.num_crashes > 1:
                return True
        return False

    def _remember(self, digest: bytes) -> _Record:
        record = self._records.setdefault(digest, _Record())
        self._records.move_to_end(digest)
        if len(self._records) > self._max_digests:
            self._records.popitem(last=False)
        return record


def _name(request: Request) -> str:
    return request.external_id or request.request_id


def digest_of(request: Request) -> bytes:
    """Digest what a request asks for; neither seeds, which the door draws, nor how many choices."""
    biases = sorted((request.params.logit_bias or {}).items())
    params = replace(request.params, seed=None, n=1, logit_bias=None)
    asked = _encode((request.prompt_token_ids, params, biases))
    return hashlib.blake2b(asked, digest_size=_DIGEST_BYTES).digest()
