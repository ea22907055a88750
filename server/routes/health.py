"""`GET /health` and `GET /ready`: 200 while requests can be served, 503 before and after.

While the server finishes what is there before it ends, it is well, and not ready.
"""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse

from engine.client.supervision import EngineState
from server.protocol.server_info import Health
from server.routes import served_by

router = APIRouter()


@router.get("/health", response_model=None)
async def show_health(request: Request) -> JSONResponse:
    """Say whether server and engine work: `ok`, `draining`, `loading`, `restarting` or `dead`."""
    return _answer(request, {EngineState.OK, EngineState.DRAINING})


@router.get("/ready", response_model=None)
async def show_readiness(request: Request) -> JSONResponse:
    """Say whether requests can be served: `ok`, or what is in the way."""
    return _answer(request, {EngineState.OK})


def _answer(request: Request, good: set[EngineState]) -> JSONResponse:
    health: Health = {"status": served_by(request).status}
    is_good = health["status"] in good
    return JSONResponse(health, HTTPStatus.OK if is_good else HTTPStatus.SERVICE_UNAVAILABLE)
