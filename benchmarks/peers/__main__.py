"""Other engines beside ours: `python -m benchmarks.peers`, with a verb."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers import compare, prefix, random_checkpoint, server, traffic
from benchmarks.peers.environment import DEFAULT_FOLDER, ENVIRONMENTS, install
from engine.errors import OutdraftError


def main(words: Sequence[str] | None = None) -> int:
    """Run the program; what it cannot honour is one line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=(__doc__ or "").splitlines()[0]
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name, add_flags, run, said in (
        ("install", _add_install_flags, _install, "make a peer's environment"),
        ("compare", compare.add_flags, compare.run, "measure ours and peers in turn"),
        ("traffic", traffic.add_flags, traffic.run, "our server and a peer's under open load"),
        ("prefix", prefix.add_flags, prefix.run, "time to first token of a cached prompt, of both"),
        ("serve", server.add_flags, server.run, "run a peer's own server until Ctrl-C"),
        (
            "checkpoint",
            random_checkpoint.add_flags,
            random_checkpoint.run,
            "write a 125M Llama with random weights and a tokenizer",
        ),
    ):
        verb = verbs.add_parser(name, help=said, description=said)
        add_flags(verb)
        verb.set_defaults(run=run)
    args = parser.parse_args(words)
    try:
        return int(args.run(args))
    except OutdraftError as error:
        parser.exit(1, f"{type(error).__name__}: {error}\n")


def _add_install_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("peer", choices=ENVIRONMENTS)
    parser.add_argument(
        "--into",
        type=Path,
        default=DEFAULT_FOLDER,
        metavar="DIR",
        help=f"holds an environment for each peer (default: {DEFAULT_FOLDER})",
    )
    parser.add_argument(
        "--pip",
        type=shlex.split,
        default=[],
        metavar="WORDS",
        help="added to every pip install, as one text: --pip='--find-links DIR'",
    )


def _install(args: argparse.Namespace) -> int:
    seconds = install(args.peer, args.into, args.pip)
    sys.stdout.write(f"{args.peer}: installed in {args.into / args.peer}, {seconds:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
