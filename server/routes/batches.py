"""`/v1/batches`: create, list, show, cancel."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request

from engine.errors import InvalidRequestError
from server.auth import caller_of
from server.batches.batch_store import NewBatch
from server.batches.file_store import listed
from server.bodies import read_body
from server.protocol.batches import BatchRequest
from server.routes import batches_of

router = APIRouter()
PageLimit = Annotated[int, Query(ge=1, le=100)]
MAX_WINDOW_S = 30 * 24 * 3600
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}


@router.post("/v1/batches", response_model=None)
async def create_batch(request: Request) -> dict[str, Any]:
    """Have the lines of a file answered, when there is room for them."""
    body = await read_body(request, BatchRequest)
    expires = body.output_expires_after
    asked = NewBatch(
        owner=caller_of(request).tenant,
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        completion_window=body.completion_window,
        window_s=_window_s(body.completion_window),
        metadata=body.metadata,
        output_lifetime_s=None if expires is None else expires.seconds,
    )
    return await batches_of(request).create(asked)


@router.get("/v1/batches", response_model=None)
async def list_batches(
    request: Request, limit: PageLimit = 20, after: str | None = None
) -> dict[str, Any]:
    """List batches, the latest first."""
    service = batches_of(request)
    rows = await service.batches.page(caller_of(request).tenant, limit, after)
    return listed([service.shown(row) for row in rows], limit)


@router.get("/v1/batches/{batch_id}", response_model=None)
async def show_batch(batch_id: str, request: Request) -> dict[str, Any]:
    """Show a batch, and how far it is."""
    service = batches_of(request)
    return service.shown(await service.batches.find(caller_of(request).tenant, batch_id))


@router.post("/v1/batches/{batch_id}/cancel", response_model=None)
async def cancel_batch(batch_id: str, request: Request) -> dict[str, Any]:
    """Ask no more lines of a batch; those being asked are given up, and what is done is kept."""
    return await batches_of(request).cancel(caller_of(request).tenant, batch_id)


def _window_s(window: str) -> int:
    """Give the seconds of a checked window.

    Raises:
        InvalidRequestError: it is too long.
    """
    seconds = int(window[:-1]) * _SECONDS[window[-1]]
    if seconds > MAX_WINDOW_S:
        raise InvalidRequestError(
            f"completion_window: {window} is longer than {MAX_WINDOW_S // _SECONDS['d']}d.",
            param="completion_window",
            code="invalid_value",
        )
    return seconds
