"""`outdraft tune`: the best draft for a model on this machine, as a configuration file."""

from __future__ import annotations

import argparse

from benchmarks import tune

run = tune.run


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add what the command does, and its flags."""
    parser.description = (
        "Measure draft candidates for a model over load, and write a configuration that "
        "`outdraft serve --config FILE` takes. No model means the demo pair."
    )
    tune.add_flags(parser)
