"""`/v1/responses`: create, show, stream again, cancel, delete, list the input, count its tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from engine.errors import InvalidRequestError
from server.auth import caller_of
from server.bodies import read_body
from server.protocol.responses import InputTokensRequest, ResponsesRequest
from server.responses.creation import count_tokens, start_response
from server.responses.item_page import item_page
from server.responses.store import ResponseStore
from server.routes import served_by
from server.streaming import EventStream, respond_whole
from server.tenant_stores import TenantStores

router = APIRouter()
Number = Annotated[int, Query(ge=0)]
PageLimit = Annotated[int, Query(ge=1, le=100)]


@router.post("/v1/responses", response_model=None)
async def create_response(request: Request) -> Response:
    """Answer a conversation: as a stream, whole, or in the background."""
    body = await read_body(request, ResponsesRequest)
    store = _store(request)
    run = start_response(served_by(request), store, body)
    if body.background and body.stream:
        return EventStream(store.stream(run.response_id, 0))
    if body.background:
        return JSONResponse(run.as_object())
    if body.stream:
        return EventStream(run.stream(), run.turn.generation)
    return await respond_whole(run.collect(), run.turn.generation, request)


@router.post("/v1/responses/input_tokens", response_model=None)
async def count_input_tokens(request: Request) -> dict[str, Any]:
    """Count the tokens of a prompt."""
    body = await read_body(request, InputTokensRequest)
    num_tokens = count_tokens(served_by(request), _store(request), body)
    return {"object": "response.input_tokens", "input_tokens": num_tokens}


@router.get("/v1/responses/{response_id}", response_model=None)
async def show_response(
    response_id: str, request: Request, stream: bool = False, starting_after: Number | None = None
) -> Response:
    """Show a stored response, or stream the events of one that was created to be streamed."""
    _check_query(request, "stream", "starting_after")
    store = _store(request)
    if not stream:
        return JSONResponse(store.show(response_id))
    first = 0 if starting_after is None else starting_after + 1
    return EventStream(store.stream(response_id, first))


@router.delete("/v1/responses/{response_id}", response_model=None)
async def delete_response(response_id: str, request: Request) -> dict[str, Any]:
    """Forget a stored response."""
    _store(request).delete(response_id)
    return {"id": response_id, "object": "response", "deleted": True}


@router.post("/v1/responses/{response_id}/cancel", response_model=None)
async def cancel_response(response_id: str, request: Request) -> dict[str, Any]:
    """Give up a response that runs in the background."""
    return _store(request).cancel(response_id)


@router.get("/v1/responses/{response_id}/input_items", response_model=None)
async def list_input_items(
    response_id: str,
    request: Request,
    limit: PageLimit = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> dict[str, Any]:
    """List what a response answers."""
    _check_query(request, "limit", "order", "after")
    items = _store(request).input_items(response_id)
    return item_page(items, limit=limit, order=order, after=after)


def _store(request: Request) -> ResponseStore:
    stores: TenantStores[ResponseStore] = request.app.state.responses
    return stores.of(caller_of(request))


def _check_query(request: Request, *known: str) -> None:
    """Refuse by name what a query asks for and would not get."""
    for name, value in request.query_params.items():
        if name not in known and (name, value) != ("include_obfuscation", "false"):
            raise InvalidRequestError(
                f"{name} is not a known parameter here; known are {', '.join(known)}.",
                param=name,
                code="unknown_parameter",
            )
