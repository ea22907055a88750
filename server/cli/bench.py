"""`outdraft bench`: measurements on this machine, with these models."""

from __future__ import annotations

from typing import Any

from benchmarks import speculation


def add_parser(subparsers: Any) -> None:
    """Register the command and what it can measure."""
    parser = subparsers.add_parser("bench", help="measure", description="Measure on this machine.")
    subjects = parser.add_subparsers(metavar="SUBJECT", required=True)
    subject = subjects.add_parser(
        "speculation",
        help="speed with speculation over speed without, over load",
        description="Measure drafters, numbers of drafts, concurrency and temperature against "
        "plain decoding; print tables, write JSON and plots, and say what to run. No model means "
        "the demo pair.",
    )
    speculation.add_flags(subject)
    subject.set_defaults(func=speculation.run)
