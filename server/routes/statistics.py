"""`GET /statistics`: what the engine does now, as a stream."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from server.statistics.channel import Channels
from server.streaming import EventStream

router = APIRouter()


@router.get("/statistics", response_model=None)
async def show_statistics(
    request: Request,
    interval_s: Annotated[float, Query(ge=0.25, le=60)] = 1.0,
    events: Annotated[int | None, Query(ge=1)] = None,
) -> Response:
    """Stream rates, acceptance, latencies and totals, each interval; ends after `events` events."""
    channels: Channels = request.app.state.statistics
    return EventStream(channels.listen(interval_s, events))
