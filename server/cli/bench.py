"""`outdraft bench`: measurements on this machine, with these models, or of any server."""

from __future__ import annotations

import argparse

_SUBJECTS = {
    "speculation": (
        "benchmarks.speculation",
        "speed with speculation over speed without, over load",
        "Measure drafters, numbers of drafts, concurrency and temperature against plain decoding; "
        "print tables, write JSON and plots, and say what to run.",
    ),
    "serve": (
        "benchmarks.serve",
        "a server's latencies, rates and goodput, over load",
        "Measure a server over HTTP: any that speaks OpenAI's API with --url, else one of our own "
        "that is started with these flags.",
    ),
    "throughput": (
        "benchmarks.throughput",
        "tokens per second offline, all prompts at once",
        "Generate answers to a set of prompts in this process, and tell how fast.",
    ),
    "latency": (
        "benchmarks.latency",
        "time to the first token and per token offline, by batch size",
        "Generate answers to batches of prompts of one length in this process, and tell how soon.",
    ),
    "growth": (
        "benchmarks.growth.program",
        "how cost grows with context, load, requests and streams",
        "Time plain steps over context and load, tell what of them is host work, and hold idle "
        "requests and streams; with bars.",
    ),
    "startup": (
        "benchmarks.startup",
        "seconds from the command to the first token",
        "Start a server several times, with its checkpoints on the disk and in the file cache.",
    ),
}
_DEMO = " No model means the demo pair."


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add what the command does, and what it can measure."""
    parser.description = "Measure on this machine."
    subjects = parser.add_subparsers(metavar="SUBJECT", required=True)
    for name, (module, summary, description) in _SUBJECTS.items():
        subjects.add_parser(name, help=summary, description=description + _DEMO, module=module)
