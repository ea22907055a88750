"""`/v1/chat/completions`: create, and what can be done with those that are stored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from server.auth import caller_of
from server.bodies import read_body
from server.chat_answer import start_chat
from server.protocol.chat import ChatCompletionRequest, ChatLabels
from server.routes import served_by
from server.stored_chats import ChatStore, PageQuery
from server.streaming import respond
from server.tenant_stores import TenantStores

router = APIRouter()
PageLimit = Annotated[int, Query(ge=1, le=100)]
Order = Literal["asc", "desc"]


@router.post("/v1/chat/completions", response_model=None)
async def create_chat_completion(request: Request) -> Response:
    """Answer a chat, as a stream or whole."""
    body = await read_body(request, ChatCompletionRequest)
    answer = start_chat(served_by(request), body, _store(request))
    return await respond(answer, request, stream=body.stream)


@router.get("/v1/chat/completions", response_model=None)
async def list_chat_completions(
    request: Request,
    model: str | None = None,
    limit: PageLimit = 20,
    order: Order = "asc",
    after: str | None = None,
) -> dict[str, Any]:
    """List stored chats; `metadata[key]=value` leaves those that have this label."""
    metadata = {
        name.removeprefix("metadata[").removesuffix("]"): value
        for name, value in request.query_params.items()
        if name.startswith("metadata[")
    }
    query = PageQuery(limit=limit, order=order, after=after)
    return _store(request).page(query, model=model, metadata=metadata)


@router.get("/v1/chat/completions/{completion_id}", response_model=None)
async def show_chat_completion(completion_id: str, request: Request) -> dict[str, Any]:
    """Show a stored chat."""
    return _store(request).show(completion_id)


@router.post("/v1/chat/completions/{completion_id}", response_model=None)
async def label_chat_completion(completion_id: str, request: Request) -> dict[str, Any]:
    """Give a stored chat other labels."""
    body = await read_body(request, ChatLabels)
    return _store(request).label(completion_id, body.metadata or {})


@router.delete("/v1/chat/completions/{completion_id}", response_model=None)
async def delete_chat_completion(completion_id: str, request: Request) -> dict[str, Any]:
    """Forget a stored chat."""
    _store(request).delete(completion_id)
    return {"id": completion_id, "object": "chat.completion.deleted", "deleted": True}


@router.get("/v1/chat/completions/{completion_id}/messages", response_model=None)
async def list_chat_messages(
    completion_id: str,
    request: Request,
    limit: PageLimit = 20,
    order: Order = "asc",
    after: str | None = None,
) -> dict[str, Any]:
    """List what a stored chat answers."""
    query = PageQuery(limit=limit, order=order, after=after)
    return _store(request).messages(completion_id, query)


def _store(request: Request) -> ChatStore:
    stores: TenantStores[ChatStore] = request.app.state.chats
    return stores.of(caller_of(request))
