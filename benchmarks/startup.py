"""How long a server takes from the command to `/ready`, and to the first token of the first answer.

`outdraft bench startup` and `python -m benchmarks.startup` are this program. Every round starts our
server twice: with the checkpoints' files dropped from the system's file cache (`cold`), and again
at once (`warm`). Libraries stay in the cache. Where a model is no local folder, there is no cold
start. What imports take is measured apart, by module, in fresh interpreters.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.page_files import write_page
from benchmarks.pages import Grid, Page, show_page
from benchmarks.program import add_output_flags, run_program
from benchmarks.progress import show_progress
from benchmarks.report import machine_in_words, rounded, settings_of
from benchmarks.rounds import Numbers, Quantity, Spread, grid_of, over_rounds
from benchmarks.serving.door import open_plain
from benchmarks.serving.http_stream import HttpClient, parse_target
from benchmarks.serving.processes import engine_words, our_environment, own_server
from benchmarks.serving.prompt_sets import CHAT, COMPLETIONS, Ask
from benchmarks.serving.records import read_reply
from benchmarks.workbench import check_at_least
from engine.config import EngineConfig
from engine.config_files import load_config, resolve
from engine.config_flags import add_config_flags, config_from_args
from engine.errors import ConfigError, ModelLoadError

COLD, WARM = "cold", "warm"
_PROMPT = "Hello"
_TIMEOUT_S = 300.0
_NUM_MODULES = 10
_IMPORTS = {
    "HTTP process": "import server.cli.serve, server.http",
    "engine process": (
        "import engine.client.engine_process, engine.client.own_process\n"
        "with engine.client.own_process.lean_imports(): import engine.core"
    ),
}
_LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)")
_QUANTITIES = [
    Quantity("ready_s", "command to /ready, s", 2),
    Quantity("first_token_s", "command to the first token, s", 2),
    Quantity("first_answer_ms", "of it, the first request's TTFT, ms"),
    Quantity("second_answer_ms", "the second request's TTFT, ms"),
]


@dataclass(frozen=True, slots=True)
class ImportTimes:
    """What one process imports.

    Attributes:
        process: in words.
        seconds: of all modules.
        by_package: of each package's own modules, the slowest first.
    """

    process: str
    seconds: float
    by_package: dict[str, float]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("--config", metavar="NAME_OR_FILE", help="settings to start from")
    add_config_flags(parser)
    group = parser.add_argument_group("measurement")
    group.add_argument("--repeats", type=int, default=3, help="rounds (default: 3)")
    group.add_argument(
        "--endpoint",
        choices=(CHAT, COMPLETIONS),
        default=CHAT,
        help=f"that is asked for a first token (default: {CHAT})",
    )
    group.add_argument(
        "--start-s", type=float, default=900.0, help="that a start may take (default: 900)"
    )
    add_output_flags(parser, "startup")


def run(args: argparse.Namespace) -> int:
    """Measure, and tell.

    Raises:
        ConfigError: a setting cannot be honoured.
        ModelLoadError: the server did not start, or gave no token.
    """
    check_at_least("repeats", args.repeats, 1)
    if not 0 < args.start_s < float("inf"):
        raise ConfigError(f"start-s: {args.start_s:g} is not above 0.")
    base = None if args.config is None else load_config(args.config)
    config, console = resolve(config_from_args(args, base)), Console()
    folders, notes = checkpoint_folders(config)
    kinds = [COLD, WARM] if folders else [WARM]
    rounds: dict[str, list[Numbers]] = {kind: [] for kind in kinds}
    words = engine_words(args)
    if not folders:
        # Nothing is dropped, so the first start may still read the disk.
        _start(words, args)
    with show_progress(args.repeats * len(kinds)) as on_progress:
        for number in range(args.repeats):
            for place, kind in enumerate(kinds):
                on_progress(f"{kind} start", float(number * len(kinds) + place))
                if kind == COLD:
                    drop_from_cache(folders)
                rounds[kind].append(_start(words, args))
    imports = [import_times(process, code) for process, code in _IMPORTS.items()]
    points: dict[str, Spread] = {kind: over_rounds(found) for kind, found in rounds.items()}
    page = Page(
        title="Outdraft bench startup",
        facts={
            "server": " ".join(["outdraft serve", *words]),
            "machine": machine_in_words("cpu"),
            "rounds": str(args.repeats),
        },
        grids=[
            grid_of("by file cache: median (lowest to highest)", _QUANTITIES, points),
            *map(_import_grid, imports),
        ],
        notes=notes,
    )
    show_page(console, page)
    content = {
        "settings": settings_of(args),
        "facts": page.facts,
        "rounds": rounded(rounds),
        "imports_s": {found.process: rounded(found.by_package) for found in imports},
    }
    write_page(args, console, page, content)
    return 0


def checkpoint_folders(config: EngineConfig) -> tuple[list[Path], list[str]]:
    """Give the folders whose files a cold start reads; where there are none, say why."""
    if not hasattr(os, "posix_fadvise"):
        return [], ["no cold start: this system cannot drop files from its cache"]
    model = Path(config.model.model or "")
    if not model.is_dir():
        return [], [f"no cold start: {config.model.model} is no local folder"]
    drafts = [Path(name) for name in (config.speculation.draft or "").split(",") if name]
    return [model, *(draft for draft in drafts if draft.is_dir())], []


def drop_from_cache(folders: list[Path]) -> None:
    """Drop all files of some folders from the system's file cache."""
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def import_times(process: str, code: str) -> ImportTimes:
    """Measure imports by package, in a fresh interpreter.

    Raises:
        ModelLoadError: they fail.
    """
    command = [sys.executable, "-X", "importtime", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=our_environment())
    if done.returncode:
        raise ModelLoadError(f"{process}: its imports fail: {done.stderr.splitlines()[-1]}")
    return read_import_times(process, done.stderr)


def read_import_times(process: str, log: str) -> ImportTimes:
    """Add up what `-X importtime` says of each module by package; times are of modules alone."""
    by_package: dict[str, float] = {}
    for micros, module in _LINE.findall(log):
        package = module.partition(".")[0]
        by_package[package] = by_package.get(package, 0.0) + int(micros) / 1e6
    ordered = sorted(by_package.items(), key=lambda item: -item[1])
    return ImportTimes(process, sum(by_package.values()), dict(ordered))


def _start(words: list[str], args: argparse.Namespace) -> Numbers:
    with own_server(words, args.start_s) as server:
        first_s, second_s = asyncio.run(_ask_twice(server.url, args.endpoint))
    return {
        "ready_s": server.ready_s,
        "first_token_s": server.ready_s + first_s,
        "first_answer_ms": first_s * 1000,
        "second_answer_ms": second_s * 1000,
    }


async def _ask_twice(url: str, endpoint: str) -> tuple[float, float]:
    """Give the times to the first token of the first two requests."""
    with closing(HttpClient(parse_target(url, {}), time.perf_counter, _TIMEOUT_S)) as client:
        door = await open_plain(client, endpoint)
        seconds = []
        for _ in range(2):
            reply = await door.send(door.body(Ask(_PROMPT), 8, 0, ""))
            record = read_reply(0, reply.sent_s, 8, reply)
            if record.failure is not None or record.ttft_s is None:
                raise ModelLoadError(f"no first token: {record.failure or 'an empty answer'}.")
            seconds.append(record.ttft_s)
    return seconds[0], seconds[1]


def _import_grid(found: ImportTimes) -> Grid:
    shown = list(found.by_package.items())[:_NUM_MODULES]
    rest = found.seconds - sum(seconds for _, seconds in shown)
    rows = [(name, f"{seconds:.3f}") for name, seconds in [*shown, ("all others", rest)]]
    return Grid(
        f"imports of the {found.process}: {found.seconds:.2f} s", ("package", "own seconds"), rows
    )


def main() -> int:
    """Run the benchmark as a program of its own."""
    return run_program(__doc__, add_flags, run)


if __name__ == "__main__":
    sys.exit(main())
