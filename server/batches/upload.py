"""Takes a file that comes as one part of a form, and writes it to the disk as it comes.

No more of it is held in memory than comes at once; fields beside it are small. It knows nothing of
what the file is for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from engine.errors import InvalidRequestError, RequestTooLargeError
from server.batches.file_store import write_through
from server.batches.storage_errors import storage_error
from server.errors import UnsupportedMediaTypeError
from server.refusals import BodyTimeoutError

MAX_FIELD_BYTES = 4096
MAX_FIELDS = 16
_FILE = "file"
_WRITE_BYTES = 2**20


class Upload:
    """A form that is being read.

    Args:
        path: where its file goes.
        max_bytes: of the file.

    Attributes:
        path: see above.
        fields: of the form, beside the file.
        filename: of the file; None = there was none.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._name = ""
        self._text = bytearray()
        self._to_write = bytearray()
        self._is_complete = False
        self.fields: dict[str, str] = {}
        self.filename: str | None = None

    async def read(self, request: Request, timeout_s: float) -> None:
        """Read the form of a request.

        Args:
            request: not read from yet.
            timeout_s: seconds for which nothing may come.

        Raises:
            RequestTooLargeError: the file has more bytes than it may have.
            BodyTimeoutError: nothing came for too long.
            UnsupportedMediaTypeError: the body is no form.
            InvalidRequestError: the form is broken.
            StorageError: the file cannot be written.
        """
        parser = MultipartParser(
            _boundary(request),
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._take_header,
                "on_header_value": self._take_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._take_data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )
        self._check_declared(request)
        try:
            await self._write_all(parser, request, timeout_s)
        except FormParserError as error:
            raise InvalidRequestError(
                f"The body is no whole form: {error}.", code="invalid_form"
            ) from error
        except OSError as error:
            raise storage_error(error) from error

    def discard(self) -> None:
        """Delete the file, unless it was taken elsewhere."""
        self.path.unlink(missing_ok=True)

    async def _write_all(self, parser: MultipartParser, request: Request, timeout_s: float) -> None:
        with await asyncio.to_thread(self.path.open, "wb") as file:
            stream = aiter(request.stream())
            while (chunk := await _next(stream, timeout_s)) is not None:
                parser.write(chunk)
                if len(self._to_write) >= _WRITE_BYTES:
                    await self._write(file)
            parser.finalize()
            if not self._is_complete:
                raise InvalidRequestError(
                    "The form ends before its last boundary.", code="invalid_form"
                )
            await self._write(file)
            await asyncio.to_thread(write_through, file)

    async def _write(self, file: BinaryIO) -> None:
        taken = bytes(self._to_write)
        self._to_write.clear()
        await asyncio.to_thread(file.write, taken)

    def _check_declared(self, request: Request) -> None:
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._max_bytes + _WRITE_BYTES:
            raise self._too_large()

    def _too_large(self) -> RequestTooLargeError:
        return RequestTooLargeError(
            f"file: it may have {self._max_bytes} bytes at most; split it, or start the server "
            "with a larger --max-file-bytes."
        )

    def _begin_part(self) -> None:
        self._disposition = b""
        self._text.clear()

    def _take_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _take_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode(errors="replace")
        is_known = self._name in self.fields or (self._name == _FILE and self.filename is not None)
        if not self._name or is_known or len(self.fields) >= MAX_FIELDS:
            raise InvalidRequestError(
                f"{self._name[:64] or 'A field'}: each field of the form needs a name of its own, "
                f"and {MAX_FIELDS} fields are the most.",
                code="invalid_form",
            )
        if self._name == _FILE:
            self.filename = options.get(b"filename", b"").decode(errors="replace") or "upload"

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == _FILE:
            self._num_bytes += end - start
            if self._num_bytes > self._max_bytes:
                raise self._too_large()
            self._to_write += data[start:end]
            return
        self._text += data[start:end]
        if len(self._text) > MAX_FIELD_BYTES:
            raise InvalidRequestError(
                f"{self._name[:64]}: a field may have {MAX_FIELD_BYTES} bytes at most.",
                param=self._name[:64],
                code="invalid_value",
            )

    def _end_part(self) -> None:
        if self._name != _FILE:
            self.fields[self._name] = self._text.decode(errors="replace")

    def _end(self) -> None:
        self._is_complete = True


def _boundary(request: Request) -> bytes:
    given = request.headers.get("content-type", "")
    kind, options = parse_options_header(given)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise UnsupportedMediaTypeError(
            "The body must be a form with the header `content-type: multipart/form-data; "
            f"boundary=...`, not {given[:100]!r}."
        )
    return options[b"boundary"]


async def _next(stream: AsyncIterator[bytes], timeout_s: float) -> bytes | None:
    """Wait for the next bytes; None when there are no more."""
    try:
        async with asyncio.timeout(timeout_s):
            return await anext(stream, None)
    except TimeoutError as error:
        raise BodyTimeoutError(
            f"Nothing of the file came for {timeout_s:g} seconds; send it faster, or start the "
            "server with a larger --body-timeout."
        ) from error
    except ClientDisconnect as error:
        raise InvalidRequestError("The client left before its file was complete.") from error
