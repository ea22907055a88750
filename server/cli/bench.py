"""`outdraft bench`: measurements on this machine, with these models."""

from __future__ import annotations

import argparse


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add what the command does, and what it can measure."""
    parser.description = "Measure on this machine."
    subjects = parser.add_subparsers(metavar="SUBJECT", required=True)
    subjects.add_parser(
        "speculation",
        help="speed with speculation over speed without, over load",
        description="Measure drafters, numbers of drafts, concurrency and temperature against "
        "plain decoding; print tables, write JSON and plots, and say what to run. No model means "
        "the demo pair.",
        module="benchmarks.speculation",
    )
