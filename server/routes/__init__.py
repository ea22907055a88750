"""The endpoints: parse, submit, render."""

from __future__ import annotations

from starlette.requests import Request

from server.auth import caller_of
from server.served import Served


def served_by(request: Request) -> Served:
    """Give what the app that got this request serves, for whoever sent it."""
    served: Served = request.app.state.served
    return served.for_caller(caller_of(request))
