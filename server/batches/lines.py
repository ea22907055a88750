"""One line of a batch's input file: what it must be, and what is wrong with it.

It knows nothing of what the line's body must hold; the route that the line names says that.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from engine.errors import InvalidRequestError

CHATS_URL = "/v1/chat/completions"
COMPLETIONS_URL = "/v1/completions"
RESPONSES_URL = "/v1/responses"
BATCH_URLS = (CHATS_URL, COMPLETIONS_URL, RESPONSES_URL)
MAX_LINE_BYTES = 4 * 2**20
MAX_CUSTOM_ID = 512
_FIELDS = ("custom_id", "method", "url", "body")
_MAX_SHOWN = 64


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request of a batch.

    Attributes:
        number: of the line in its file, from 1.
        custom_id: the caller's name for it.
        method: of HTTP.
        url: the path that answers it.
        body: of the call.
    """

    number: int
    custom_id: str
    method: str
    url: str
    body: dict[str, Any]


class BatchLineError(InvalidRequestError):
    """A line that cannot be asked.

    Args:
        message: what is wrong with it.
        number: of the line, from 1.
        param: the field at fault.
        code: a machine-readable reason.
        custom_id: of the line, where it has one.
    """

    def __init__(
        self,
        message: str,
        *,
        number: int,
        param: str | None,
        code: str,
        custom_id: str | None = None,
    ) -> None:
        super().__init__(f"Line {number}: {message}", param=param, code=code)
        self.number = number
        self.custom_id = custom_id


class LineParser:
    """Reads the lines of one file; it remembers their ids, since none may come twice.

    Args:
        urls: that lines may name.
        max_line_bytes: of a line at most.
    """

    def __init__(
        self, urls: Collection[str] = BATCH_URLS, max_line_bytes: int = MAX_LINE_BYTES
    ) -> None:
        self._urls = urls
        self._max_line_bytes = max_line_bytes
        self._lines_of: dict[str, int] = {}

    def parse(self, raw: bytes, number: int) -> BatchLine:
        """Read a line.

        Args:
            raw: the line; its end may be there or not.
            number: of the line in its file, from 1.

        Raises:
            BatchLineError: it cannot be asked.
        """
        if len(raw) > self._max_line_bytes:
            raise self.too_long(number)
        values = _object(raw, number)
        custom_id = _text(values, "custom_id", number)
        self._check_new(custom_id, number)
        line = parse_fields(values, custom_id, number)
        if line.url not in self._urls:
            raise BatchLineError(
                f"url: {line.url[:_MAX_SHOWN]!r} is not {' or '.join(self._urls)}.",
                number=number,
                param="url",
                code="invalid_url",
                custom_id=custom_id,
            )
        return line

    def too_long(self, number: int) -> BatchLineError:
        """Make the error for a line with too many bytes."""
        return BatchLineError(
            f"it has more than {self._max_line_bytes} bytes, which a line may have at most.",
            number=number,
            param=None,
            code="line_too_long",
        )

    def _check_new(self, custom_id: str, number: int) -> None:
        if not 0 < len(custom_id) <= MAX_CUSTOM_ID:
            raise BatchLineError(
                f"custom_id: it has {len(custom_id)} characters and may have 1 to {MAX_CUSTOM_ID}.",
                number=number,
                param="custom_id",
                code="invalid_value",
            )
        first = self._lines_of.setdefault(custom_id, number)
        if first != number:
            raise BatchLineError(
                f"custom_id: line {first} has {custom_id[:_MAX_SHOWN]!r} already.",
                number=number,
                param="custom_id",
                code="duplicate_custom_id",
                custom_id=custom_id,
            )


def parse_fields(values: dict[str, Any], custom_id: str, number: int) -> BatchLine:
    """Check the fields of a line beside its id.

    Raises:
        BatchLineError: one of them is missing, of another kind, or unknown.
    """

    def wrong(param: str, message: str, code: str = "invalid_value") -> BatchLineError:
        return BatchLineError(
            f"{param}: {message}", number=number, param=param, code=code, custom_id=custom_id
        )

    for name in values:
        if name not in _FIELDS:
            shown = name[:_MAX_SHOWN]
            raise wrong(
                shown, f"no field of a line; these are {', '.join(_FIELDS)}.", "unknown_parameter"
            )
    method = _text(values, "method", number, custom_id)
    if method != "POST":
        raise wrong("method", f"{method[:_MAX_SHOWN]!r} is not POST.", "invalid_method")
    url = _text(values, "url", number, custom_id)
    if "body" not in values:
        raise wrong("body", "it is missing.", "missing_required_parameter")
    if not isinstance(values["body"], dict):
        raise wrong("body", "it must be an object.")
    return BatchLine(number, custom_id, method, url, values["body"])


def _object(raw: bytes, number: int) -> dict[str, Any]:
    try:
        values = from_json(raw)
    except ValueError as error:
        raise BatchLineError(
            f"it is not JSON: {error}.", number=number, param=None, code="invalid_json_line"
        ) from error
    if not isinstance(values, dict):
        raise BatchLineError(
            "it is no JSON object.", number=number, param=None, code="invalid_json_line"
        )
    return values


def _text(values: dict[str, Any], name: str, number: int, custom_id: str | None = None) -> str:
    value = values.get(name)
    if isinstance(value, str):
        return value
    is_missing = value is None
    raise BatchLineError(
        f"{name}: it is missing." if is_missing else f"{name}: it must be a string.",
        number=number,
        param=name,
        code="missing_required_parameter" if is_missing else "invalid_value",
        custom_id=custom_id,
    )
