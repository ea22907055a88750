"""Flags that say how answers are sampled, the same for all commands without a server."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any

from engine.sampling_params import SamplingParams

SAMPLING_FLAGS = (
    ("temperature", float, "0 is greedy"),
    ("top_p", float, "keep the likeliest tokens up to this probability"),
    ("top_k", int, "keep this many tokens; 0 keeps all"),
    ("min_p", float, "drop tokens below this fraction of the likeliest"),
    ("repetition_penalty", float, "1 is off"),
    ("presence_penalty", float, "0 is off"),
    ("frequency_penalty", float, "0 is off"),
    ("seed", int, "same seed, same text; drawn when absent"),
    ("n", int, "answers per prompt"),
    ("max_tokens", int, "tokens per answer at most"),
    ("min_tokens", int, "tokens per answer at least"),
    ("logprobs", int, "report log probabilities with this many alternatives"),
)


def add_sampling_flags(
    group: Any, defaults: SamplingParams | None = None, *, without: Collection[str] = ()
) -> None:
    """Add the flags; those that are not given leave nothing behind.

    Args:
        group: gets them.
        defaults: to tell in the help; None = whoever serves the request has defaults of its own.
        without: names of those to leave out.
    """
    for name, kind, text in SAMPLING_FLAGS:
        if name in without:
            continue
        told = text if defaults is None else f"{text} ({getattr(defaults, name)})"
        group.add_argument(
            f"--{name.replace('_', '-')}", type=kind, default=argparse.SUPPRESS, help=told
        )
    group.add_argument(
        "--stop", action="append", default=argparse.SUPPRESS, help="text that ends an answer"
    )
    group.add_argument(
        "--ignore-eos",
        action="store_true",
        default=argparse.SUPPRESS,
        help="the model's end token does not end an answer",
    )


def given_sampling(args: argparse.Namespace) -> dict[str, Any]:
    """Give the sampling settings that were given, by name.

    Raises:
        InvalidRequestError: one of them is out of its range.
    """
    names = [*(name for name, _, _ in SAMPLING_FLAGS), "stop", "ignore_eos"]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    sampling_params(given)
    return given


def sampling_params(given: dict[str, Any]) -> SamplingParams:
    """Make the settings of what was given.

    Raises:
        InvalidRequestError: one of them is out of its range.
    """
    return SamplingParams(**given | ({"stop": tuple(given["stop"])} if "stop" in given else {}))
