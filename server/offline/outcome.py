"""What becomes of a record: what is asked for it, the row that is written, and what a row of an
earlier run says. A `Recipe` is one way to make requests of records and rows of answers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

import msgspec

from server.batches.lines import BatchLine, BatchLineError
from server.batches.output import LineAnswer
from server.offline.records import Record

# What may well succeed when it is asked again.
_PASSING = {
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}
DUPLICATE = "duplicate_custom_id"


@dataclass(frozen=True, slots=True)
class Job:
    """One record that is to be answered.

    Attributes:
        record: the record.
        asked: the request for it, or why there is none.
    """

    record: Record
    asked: BatchLine | BatchLineError


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one record.

    Attributes:
        row: to be written.
        error: code of its error; None = it is answered.
        is_passing: whether it may be answered another time.
        num_prompt_tokens: of the request.
        num_tokens: of the answer.
    """

    row: bytes
    error: str | None = None
    is_passing: bool = False
    num_prompt_tokens: int = 0
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class PastRow:
    """What a row of an earlier run says.

    Attributes:
        key: which record it answers; see `key_of_id`.
        is_passing: whether it tells of a failure that may be over.
        error: code of its error; None = it is an answer.
    """

    key: int
    is_passing: bool
    error: str | None


@dataclass(frozen=True, slots=True)
class TableShape:
    """How rows become a table.

    Attributes:
        last: columns that come behind all others, in this order.
        texts: columns that are JSON text, as no two rows have the same in them.
    """

    last: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()


class Recipe(Protocol):
    """Makes requests of records, and rows of what became of them."""

    @property
    def table_shape(self) -> TableShape:
        """How its rows become a table."""

    def line(self, record: Record) -> BatchLine:
        """Make a record's request.

        Raises:
            BatchLineError: it makes none.
        """

    def answered(self, job: Job, answer: LineAnswer) -> Outcome:
        """Make the row of what the route answered."""

    def failed(self, job: Job, error: BatchLineError) -> Outcome:
        """Make the row of a record that makes no request."""

    def past(self, row: dict[str, Any]) -> PastRow | None:
        """Read a row; None = it is none of these."""


def key_of_id(custom_id: str) -> int:
    """Give what stands for an id in sets: small, and not the same for two ids in practice."""
    return _digest(f"id {custom_id}")


def key_of_number(number: int) -> int:
    """Give what stands for a record that has no id."""
    return _digest(f"number {number}")


def key_of(asked: BatchLine | BatchLineError) -> int:
    """Give what stands for a record in sets."""
    if asked.custom_id is None:
        return key_of_number(asked.number)
    return key_of_id(asked.custom_id)


def past_row(custom_id: str | None, error: Any, status_code: Any) -> PastRow | None:
    """Read what a row says; None = it does not say which record it answers.

    Args:
        custom_id: of the record; None = it has none.
        error: as it stands in the row.
        status_code: of the route's answer, where there was one.
    """
    told = error if isinstance(error, dict) else {}
    code, number = told.get("code"), told.get("line")
    # A record whose id came before is known by its number: its id is the other one's.
    if custom_id is not None and code != DUPLICATE:
        key = key_of_id(custom_id)
    elif isinstance(number, int):
        key = key_of_number(number)
    else:
        return None
    return PastRow(key, isinstance(status_code, int) and is_passing(status_code), code)


def is_passing(status_code: int) -> bool:
    """Whether an answer of this status may be another one next time."""
    return status_code in _PASSING


def usage_of(body: dict[str, Any]) -> tuple[int, int]:
    """Give the tokens of a prompt and of its answer, as any route tells them."""
    usage = body.get("usage") or {}
    prompt = usage.get("prompt_tokens", usage.get("input_tokens", 0))
    return prompt, usage.get("completion_tokens", usage.get("output_tokens", 0))


def body_of(answer: LineAnswer) -> dict[str, Any]:
    """Read an answer's body."""
    body: dict[str, Any] = msgspec.json.decode(answer.body)
    return body


def _digest(text: str) -> int:
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
