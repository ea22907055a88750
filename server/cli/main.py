"""`outdraft`: the one command, and how its failures are told."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from engine import __version__
from engine.errors import OutdraftError
from server.cli import chat, generate, serve

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = make_parser().parse_args(argv)
    try:
        status: int = args.func(args)
    except OutdraftError as error:
        # Messages of other libraries may have many lines; what failed is told in one.
        message = " ".join(f"outdraft: {type(error).__name__}: {error}".split())
        Console(stderr=True, soft_wrap=True).print(
            message, style="red", markup=False, highlight=False
        )
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    return status


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands; each sets `func`."""
    parser = argparse.ArgumentParser(
        prog="outdraft",
        description="An LLM server whose speciality is speculative decoding.",
    )
    parser.add_argument("--version", action="version", version=f"outdraft {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (serve, generate, chat):
        command.add_parser(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
