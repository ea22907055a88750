"""The engine process: loads the models, then steps while there is work and sleeps when not.

It is started by `engine.client.process` as `python -m engine.client.engine_process ADDRESS`, hears
everything else over that socket, and ends when the pipe on its standard input closes, which is when
its parent is gone. It knows nothing of text or HTTP.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zmq

from engine.client.messages import (
    AbortRequests,
    AddRequests,
    EngineFailed,
    EngineReady,
    FromEngine,
    Heartbeat,
    NewRequest,
    StartEngine,
    StepOutputs,
    StopEngine,
    ToEngine,
    encoder,
    to_engine_decoder,
)
from engine.client.step_note import StepNote
from engine.errors import OutdraftError
from engine.log_format import start_logging
from engine.request import FinishReason, RequestDelta
from engine.startup_clock import StartupClock
from engine.uncollected import uncollected

_LINGER_MS = 2000
_HEARTBEAT_MS = 1000
_EXIT_FAILED = 1

logger = logging.getLogger(__name__)


class EngineLoop:
    """Feeds a core with what arrives and sends what it gives.

    Args:
        core: an `EngineCore`, or what behaves like one.
        socket: a connected PAIR socket.
        note: told who is in each step, before it can crash.
    """

    def __init__(self, core: Any, socket: zmq.Socket[bytes], note: StepNote) -> None:
        self._core = core
        self._socket = socket
        self._is_stopping = False
        self._num_heard = 0
        self._note = note

    def run(self) -> None:
        """Serve until told to stop; whatever a step raises comes out of here."""
        self._core.warm_up()
        self._core.on_step = self._note.write
        _send(self._socket, EngineReady(self._core.info))
        while not self._is_stopping:
            if not self._core.has_unfinished:
                self._rest()
            for message in self._inbox():
                self._num_heard += 1
                self._handle(message)
            if self._core.has_unfinished:
                deltas = self._core.step()
                _send(self._socket, StepOutputs(deltas, self._core.stats()))

    def _rest(self) -> None:
        """Wait for a message, and say now and then that we live."""
        while True:
            _send(self._socket, Heartbeat(self._num_heard))
            if self._socket.poll(_HEARTBEAT_MS):
                return

    def _inbox(self) -> Iterator[ToEngine]:
        """Give the messages that have arrived, without waiting."""
        while True:
            try:
                yield to_engine_decoder.decode(self._socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return

    def _handle(self, message: ToEngine) -> None:
        match message:
            case AddRequests(requests):
                for request in requests:
                    self._add(request)
            case AbortRequests(request_ids):
                self._core.abort(request_ids)
                if not self._core.has_unfinished:
                    _send(self._socket, StepOutputs([], self._core.stats()))
            case StopEngine():
                self._is_stopping = True
            case StartEngine():
                raise AssertionError("the engine was started twice")

    def _add(self, request: NewRequest) -> None:
        """Give a request to the core; one that cannot be taken does not harm the others."""
        try:
            self._core.add_request(request.make())
        except Exception as error:
            if not isinstance(error, OutdraftError):
                logger.exception(
                    "request_not_taken id=%s request_id=%s",
                    request.request_id,
                    request.external_id,
                )
                # Part of it may be in; nobody would ever hear of that again.
                self._core.abort([request.request_id])
            refusal = RequestDelta(
                request.request_id, [], finish_reason=FinishReason.ERROR, error=str(error)
            )
            _send(self._socket, StepOutputs([refusal], self._core.stats()))


def main() -> None:
    """Run the engine process; the socket's address is the one argument."""
    # Both may reach a whole group of processes; the parent decides when the engine ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # the parent asks where we hang
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    context = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.set_hwm(0)
    socket.setsockopt(zmq.LINGER, _LINGER_MS)
    socket.connect(sys.argv[1])
    is_well = _serve(socket)
    socket.close()
    context.term()
    logging.shutdown()
    # Not sys.exit: threads of native libraries must not hold up the end.
    os._exit(0 if is_well else _EXIT_FAILED)


def _serve(socket: zmq.Socket[bytes]) -> bool:
    """Load and serve; a failure is told to the parent. Returns whether all went well."""
    start = to_engine_decoder.decode(socket.recv())
    assert isinstance(start, StartEngine), f"expected StartEngine, got {type(start).__name__}"
    start_logging(start.log_level, start.log_format)
    try:
        EngineLoop(_make_core(start), socket, StepNote(_folder())).run()
    except OutdraftError as error:
        _send(socket, EngineFailed(type(error).__name__, str(error)))
        return False
    except Exception as error:
        logger.exception("engine_failed error=%s", type(error).__name__)
        _send(socket, EngineFailed(type(error).__name__, f"{type(error).__name__}: {error}"))
        return False
    return True


def _make_core(start: StartEngine) -> Any:
    clock = StartupClock()
    module, _, name = start.core_factory.partition(":")
    with uncollected():
        factory = getattr(importlib.import_module(module), name)
    clock.lap("import")
    core = factory(start.config)
    clock.lap("core")
    logger.info("engine_made %s", clock)
    return core


def _send(socket: zmq.Socket[bytes], message: FromEngine) -> None:
    socket.send(encoder.encode(message))


def _end_with_parent() -> None:
    """Wait for the parent to close its end of our standard input, clean up for it, and end."""
    with contextlib.suppress(OSError):
        while os.read(sys.stdin.fileno(), 1024):
            pass
    shutil.rmtree(_folder(), ignore_errors=True)
    os._exit(_EXIT_FAILED)


def _folder() -> Path:
    """Give the folder that holds our socket."""
    return Path(sys.argv[1].removeprefix("ipc://")).parent


if __name__ == "__main__":
    main()
