"""`/v1/files`: upload, list, show, read, delete."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from fastapi import APIRouter, Query
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import FileResponse

from engine.errors import InvalidRequestError
from server.auth import caller_of
from server.batches.file_store import PURPOSES, FilePage
from server.batches.upload import Upload
from server.config import ServerConfig
from server.protocol.batches import MAX_LIFETIME_S, MIN_LIFETIME_S, FileForm
from server.refusals import ForbiddenError
from server.routes import batches_of

router = APIRouter()
_SECONDS = "expires_after[seconds]"
PageLimit = Annotated[int, Query(ge=1, le=10_000)]


@router.post("/v1/files", response_model=None)
async def create_file(request: Request) -> dict[str, Any]:
    """Keep a file; what is in it is looked at when a batch reads it."""
    files, owner = batches_of(request).files, caller_of(request).tenant
    config: ServerConfig = request.app.state.config
    _check_origin(request, config)
    await files.check_quota(owner, 1)
    upload = Upload(files.uploads / uuid.uuid4().hex, config.max_file_bytes)
    try:
        await upload.read(request, config.body_timeout)
        form = _form(upload)
        return await files.keep(
            owner, upload.path, filename=upload.filename or "", lifetime_s=form.seconds
        )
    finally:
        upload.discard()


@router.get("/v1/files", response_model=None)
async def list_files(
    request: Request,
    purpose: str | None = None,
    limit: PageLimit = 10_000,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> dict[str, Any]:
    """List files."""
    query = FilePage(limit=limit, order=order, after=after, purpose=purpose)
    return await batches_of(request).files.page(caller_of(request).tenant, query)


@router.get("/v1/files/{file_id}", response_model=None)
async def show_file(file_id: str, request: Request) -> dict[str, Any]:
    """Show what is known of a file."""
    return await batches_of(request).files.show(caller_of(request).tenant, file_id)


@router.get("/v1/files/{file_id}/content", response_model=None)
async def read_file(file_id: str, request: Request) -> FileResponse:
    """Read a file."""
    files = batches_of(request).files
    # The path is made of the id that was found, which is one of ours.
    found = await files.show(caller_of(request).tenant, file_id)
    return FileResponse(files.path_of(found["id"]), media_type="application/octet-stream")


@router.delete("/v1/files/{file_id}", response_model=None)
async def delete_file(file_id: str, request: Request) -> dict[str, Any]:
    """Delete a file."""
    await batches_of(request).files.delete(caller_of(request).tenant, file_id)
    return {"id": file_id, "object": "file", "deleted": True}


def _check_origin(request: Request, config: ServerConfig) -> None:
    """Refuse forms of web pages of others: browsers send these without asking first.

    Raises:
        ForbiddenError: it is one.
    """
    origin = request.headers.get("origin")
    if origin is None or {"*", origin} & set(config.cors_origin):
        return
    if urlsplit(origin).netloc != request.headers.get("host"):
        raise ForbiddenError(
            f"No page of {origin[:100]!r} may upload here; if it may, start the server with "
            "--cors-origin.",
            code="wrong_origin",
        )


def _form(upload: Upload) -> FileForm:
    """Check the fields of a form.

    Raises:
        InvalidRequestError: one is missing, unknown, or not served.
        RequestValidationError: one has a wrong value.
    """
    given: dict[str, Any] = dict(upload.fields)
    if upload.filename is not None:
        given["file"] = b""
    purpose = given.get("purpose")
    if purpose is not None and purpose != "batch":
        known = "made by batches alone" if purpose in PURPOSES else "not served"
        raise InvalidRequestError(
            f"purpose: {purpose[:64]!r} is {known}; upload files with 'batch'.",
            param="purpose",
            code="invalid_value",
        )
    if _SECONDS in given:
        given[_SECONDS] = _lifetime_s(given[_SECONDS])
    try:
        return FileForm.model_validate(given)
    except ValidationError as error:
        raise RequestValidationError(
            error.errors(include_url=False, include_input=False)
        ) from error


def _lifetime_s(given: str) -> int:
    """Read how long a file is kept.

    Raises:
        InvalidRequestError: it is no number, too little or too much.
    """
    seconds = int(given) if given.isdecimal() and len(given) < 10 else 0
    if not MIN_LIFETIME_S <= seconds <= MAX_LIFETIME_S:
        raise InvalidRequestError(
            f"{_SECONDS}: {given[:64]!r} is no number from {MIN_LIFETIME_S} to {MAX_LIFETIME_S}.",
            param=_SECONDS,
            code="invalid_value",
        )
    return seconds
