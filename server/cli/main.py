"""`outdraft`: the one command, and how its failures are told."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from engine.errors import OutdraftError
from engine.version import __version__
from server.cli.command_parser import CommandParser

_COMMANDS = {
    "serve": "serve a model over HTTP",
    "generate": "generate from a file of prompts",
    "chat": "chat with a running server",
    "bench": "measure",
    "tune": "choose a draft by measuring, and write a configuration",
}
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = make_parser().parse_args(argv)
    try:
        return int(args.func(args))
    except OutdraftError as error:
        # Messages of other libraries may have many lines; what failed is told in one.
        _print_error(" ".join(f"outdraft: {type(error).__name__}: {error}".split()))
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED


def make_parser() -> CommandParser:
    """Make the parser of all commands; each sets `func`."""
    parser = CommandParser(
        prog="outdraft",
        description="An LLM server whose speciality is speculative decoding.",
    )
    parser.add_argument("--version", action="version", version=f"outdraft {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, summary in _COMMANDS.items():
        subparsers.add_parser(name, help=summary, module=f"server.cli.{name}")
    return parser


def _print_error(message: str) -> None:
    # Imported here because lists of commands and flags should not wait for it.
    from rich.console import Console

    Console(stderr=True, soft_wrap=True).print(message, style="red", markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
