"""`outdraft`: the one command, and how its failures are told."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from engine.errors import OutdraftError
from engine.version import __version__
from server.cli.command_parser import CommandParser
from server.cli.failures import print_failure

_COMMANDS = {
    "serve": "serve a model over HTTP",
    "generate": "generate from a file of prompts",
    "batch": "answer a file or a stream of records",
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
        print_failure(error)
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


if __name__ == "__main__":
    sys.exit(main())
