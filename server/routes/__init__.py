"""The endpoints: parse, submit, render."""

from __future__ import annotations

from starlette.requests import Request

from server.auth import caller_of
from server.batches.data_dir import NoDataDir
from server.batches.service import BatchService
from server.batches.storage_errors import NoDataDirError
from server.served import Served


def served_by(request: Request) -> Served:
    """Give what the app that got this request serves, for whoever sent it."""
    served: Served = request.app.state.served
    return served.for_caller(caller_of(request))


def batches_of(request: Request) -> BatchService:
    """Give what the app has for files and batches.

    Raises:
        NoDataDirError: it has nothing.
    """
    service: BatchService | NoDataDir = request.app.state.batches
    if isinstance(service, NoDataDir):
        raise NoDataDirError(f"This server keeps no files and batches. {service.reason}")
    return service
