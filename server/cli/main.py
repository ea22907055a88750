"""`outdraft`: the one command, and how its failures are told."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from rich.console import Console

from engine import __version__
from engine.errors import OutdraftError

_COMMANDS = ("serve", "generate", "chat", "bench", "tune")
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    args = make_parser(words[0] if words else None).parse_args(words)
    try:
        return int(args.func(args))
    except OutdraftError as error:
        # Messages of other libraries may have many lines; what failed is told in one.
        message = " ".join(f"outdraft: {type(error).__name__}: {error}".split())
        Console(stderr=True, soft_wrap=True).print(
            message, style="red", markup=False, highlight=False
        )
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED


def make_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Make the parser of all commands; each sets `func`.

    Args:
        command: the one that will be used, if it is known: the others are then not imported, so
            that a chat need not wait for torch.
    """
    parser = argparse.ArgumentParser(
        prog="outdraft",
        description="An LLM server whose speciality is speculative decoding.",
    )
    parser.add_argument("--version", action="version", version=f"outdraft {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in [command] if command in _COMMANDS else _COMMANDS:
        importlib.import_module(f"server.cli.{name}").add_parser(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
