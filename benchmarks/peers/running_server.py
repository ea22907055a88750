"""A server in a session of its own: started, asked, stopped with every process below it."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from benchmarks.peers.process_tree import ProcessTree
from benchmarks.serving.processes import is_ready, last_lines
from engine.errors import ModelLoadError

_START_S = 900.0
_STOP_S = 10
_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """How a server is started.

    Attributes:
        label: in tables.
        words: the command.
        variables: added to the process environment.
        url: where it will listen.
        ready_path: is answered with 200 once it can be asked.
        model: its model's name on the wire; None = the first that it lists.
        versions: of what it is made of.
    """

    label: str
    words: Sequence[str]
    variables: dict[str, str]
    url: str
    ready_path: str
    model: str | None
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that is ready.

    Attributes:
        command: that started it.
        tree: its processes.
        start_s: seconds from the command to its being ready.
    """

    command: Command
    tree: ProcessTree
    start_s: float


@contextmanager
def running(command: Command) -> Iterator[RunningServer]:
    """Run a server until the block ends; then nothing of it is left.

    Raises:
        ModelLoadError: it ended, or was not ready in time; with the last lines of its log.
    """
    with tempfile.TemporaryFile() as log:
        began = time.monotonic()
        process = start_in_session(command.words, command.variables, log.fileno())
        try:
            while not is_ready(command.url + command.ready_path):
                what = f"{command.label}'s server"
                if process.poll() is not None:
                    raise ModelLoadError(f"{what} ended: {last_lines(log)}")
                if time.monotonic() - began > _START_S:
                    raise ModelLoadError(f"{what} was not ready in time: {last_lines(log)}")
                time.sleep(_POLL_S)
            yield RunningServer(command, ProcessTree(process), time.monotonic() - began)
        finally:
            stop_session(process)


def start_in_session(
    words: Sequence[str], variables: dict[str, str], output: int | None = None
) -> subprocess.Popen[bytes]:
    """Start a program that leads a session of its own.

    Args:
        words: the command.
        variables: added to the process environment.
        output: where it writes, a file's number; None = where this process does.
    """
    return subprocess.Popen(
        list(words),
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def stop_session(process: subprocess.Popen[bytes]) -> None:
    """End a program and every process that it started, in whatever order they end."""
    if process.poll() is None:
        ProcessTree(process).go_on()
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM, by which programs in the background are ended, do as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
