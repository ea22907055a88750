"""Servers that are started for a measurement and stopped behind it: ours, and the null server."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
import typing
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

from engine.config import EngineConfig
from engine.config_files import config_options
from engine.config_flags import given_options
from engine.errors import ConfigError, ModelLoadError

_STOP_S = 30.0
_POLL_S = 0.01
_TOLD_LINES = 12
_OK = 200
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class OwnServer:
    """A server that was started for a measurement.

    Attributes:
        url: its address.
        ready_s: seconds from the command to its being ready.
        pid: of its HTTP process, the engine's parent.
    """

    url: str
    ready_s: float
    pid: int


def engine_words(args: argparse.Namespace) -> list[str]:
    """Give the words behind `outdraft serve` that say what a command line said of the engine."""
    words = [] if args.config is None else ["--config", args.config]
    given = given_engine_options(args)
    for option in config_options():
        if option.name not in given:
            continue
        value = given[option.name]
        if option.name == "model":
            words.append(str(value))
        elif option.kind is bool:
            words.append(f"--{'' if value else 'no-'}{option.flag}")
        else:
            texts = value if isinstance(value, tuple) else (value,)
            words += [f"--{option.flag}", *map(str, texts)]
    return words


def given_engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """Give the engine's settings that a command line names, by field."""
    hints = typing.get_type_hints(EngineConfig)
    given: dict[str, Any] = {}
    for section in fields(EngineConfig):
        given |= given_options(args, hints[section.name])
    return given


def our_environment() -> dict[str, str]:
    """Give an environment in which Python finds this very code, wherever it is started."""
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def free_port() -> int:
    """Give a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def own_server(words: list[str], start_s: float) -> Iterator[OwnServer]:
    """Serve on a free port until the block ends.

    Args:
        words: behind `outdraft serve`.
        start_s: seconds that it may take to become ready.

    Yields:
        The server, ready.

    Raises:
        ModelLoadError: it ended, or was not ready in time; with the last lines of its log.
    """
    port = free_port()
    command = [sys.executable, "-m", "server.cli.main", "serve", *words, "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=our_environment()
        )
        try:
            url = f"http://127.0.0.1:{port}"
            while not is_ready(f"{url}/ready"):
                if process.poll() is not None:
                    raise ModelLoadError(f"the server ended: {last_lines(log)}")
                if time.perf_counter() - began > start_s:
                    raise ModelLoadError(f"not ready after {start_s:g} s: {last_lines(log)}")
                time.sleep(_POLL_S)
            yield OwnServer(url, time.perf_counter() - began, process.pid)
        finally:
            _stop(process)


@contextmanager
def null_server(interval_ms: float = 0.0) -> Iterator[str]:
    """Run the null server in a process of its own until the block ends; gives its address.

    Raises:
        ConfigError: it did not start.
    """
    command = [sys.executable, "-m", "benchmarks.serving.null_server"]
    command += ["--interval-ms", str(interval_ms)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=our_environment()) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline().strip()
            if not port:
                raise ConfigError("the null server did not start.")
            yield f"http://127.0.0.1:{port.decode()}"
        finally:
            _stop(process)


def is_ready(url: str) -> bool:
    """Ask an address whether its server is ready."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == _OK)
    except urllib.error.HTTPError as error:
        error.close()
        return False
    except OSError:
        return False


def last_lines(log: IO[bytes]) -> str:
    """Give the end of what a server wrote."""
    log.seek(0)
    return " | ".join(log.read().decode(errors="replace").splitlines()[-_TOLD_LINES:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
