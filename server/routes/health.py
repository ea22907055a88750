"""`GET /health` and `GET /ready`: 200 while requests can be served, 503 before and after."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse

from server.routes import served_by

router = APIRouter()


@router.get("/health", response_model=None)
@router.get("/ready", response_model=None)
async def show_health(request: Request) -> JSONResponse:
    """Say whether requests can be served: `ok`, `loading` or `dead`."""
    served = served_by(request)
    if served.is_ready:
        return JSONResponse({"status": "ok"})
    status = "loading" if served.engine.is_alive else "dead"
    return JSONResponse({"status": status}, status_code=HTTPStatus.SERVICE_UNAVAILABLE)
