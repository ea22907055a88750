"""`GET /metrics`, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from server.routes import served_by

router = APIRouter()


@router.get("/metrics", response_model=None)
async def show_metrics(request: Request) -> Response:
    """Show all metrics in Prometheus' text format."""
    return Response(served_by(request).metrics.render(), media_type=CONTENT_TYPE_LATEST)
