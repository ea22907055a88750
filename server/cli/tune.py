"""`outdraft tune`: the best draft for a model on this machine, as a configuration file."""

from __future__ import annotations

from typing import Any

from benchmarks import tune


def add_parser(subparsers: Any) -> None:
    """Register the command and its flags."""
    parser = subparsers.add_parser(
        "tune",
        help="choose a draft by measuring, and write a configuration",
        description="Measure draft candidates for a model over load, and write a configuration "
        "that `outdraft serve --config FILE` takes. No model means the demo pair.",
    )
    tune.add_flags(parser)
    parser.set_defaults(func=tune.run)
