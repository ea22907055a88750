"""What programs of benchmarks share: where results go, plots if they can be, one-line errors."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.report import results_folder, write_results
from engine.errors import OutdraftError

_FOLDER = Path("bench-results")


def add_output_flags(parser: argparse.ArgumentParser, name: str) -> None:
    """Add where results go, and what they are called."""
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help=f"where results go (default: $OUT where it is set, else ./{_FOLDER})",
    )
    parser.add_argument("--name", default=name, help=f"their name (default: {name})")


def write_output(
    args: argparse.Namespace,
    console: Console,
    content: dict[str, Any],
    draw: Callable[[Path], list[Path]] | None = None,
) -> None:
    """Write a benchmark's results, and its plots where matplotlib is; say where.

    Args:
        args: with the flags of `add_output_flags`.
        console: where it is said.
        content: what was measured.
        draw: writes plots, given the files' common beginning.
    """
    folder = output_folder(args)
    written = [write_results(args.name, content, folder)]
    if draw is not None:
        written += _drawn(console, draw, folder / args.name)
    for path in written:
        console.print(f"written: {path}", soft_wrap=True, highlight=False)


def output_folder(args: argparse.Namespace) -> Path:
    """Give where results go, by the flags of `add_output_flags`."""
    return results_folder(_FOLDER) if args.output is None else args.output


def run_program(
    doc: str | None,
    add_flags: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], int],
) -> int:
    """Run a benchmark as a program of its own; what it cannot honour is one line.

    Args:
        doc: of the module; its first line describes the program.
        add_flags: adds the program's flags.
        run: measures, and tells.
    """
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    add_flags(parser)
    try:
        return run(parser.parse_args())
    except OutdraftError as error:
        parser.exit(1, f"{type(error).__name__}: {error}\n")


def _drawn(console: Console, draw: Callable[[Path], list[Path]], stem: Path) -> list[Path]:
    try:
        return draw(stem)
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("matplotlib"):
            raise
        line = "no plots: matplotlib is missing; `pip install 'outdraft[bench]'` brings it"
        console.print(line, soft_wrap=True, highlight=False, markup=False)
        return []
