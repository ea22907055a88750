"""`GET /v1/models` and `GET /v1/models/{name}`."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request

from server.protocol.models import ModelCard, ModelList
from server.routes import served_by
from server.served import Served

router = APIRouter()


@router.get("/v1/models", response_model=None)
async def list_models(request: Request) -> ModelList:
    """List the served models."""
    return {"object": "list", "data": [_card(served_by(request))]}


@router.get("/v1/models/{name:path}", response_model=None)
async def show_model(name: str, request: Request) -> ModelCard:
    """Describe one served model."""
    served = served_by(request)
    served.check_model(name)
    return _card(served)


def _card(served: Served) -> ModelCard:
    card: ModelCard = {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "outdraft",
    }
    if served.is_ready:
        card["max_model_len"] = served.engine.info.max_total_tokens
    return card
