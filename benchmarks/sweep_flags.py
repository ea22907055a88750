"""The flags that say what a sweep measures, and what they mean; shared by bench and tune."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.sweep import Sweep
from benchmarks.workloads import SHARED, WORKLOADS, Workload, built_in_workload
from engine.config import VOCABULARIES, EngineConfig, ModelConfig
from engine.config_files import load_config
from engine.config_flags import add_option_flags, config_from_args
from engine.errors import ConfigError, InvalidRequestError
from engine.prompts import PromptLine, PromptTokenizer, read_prompt_lines

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class SweepDefaults:
    """What a command measures where nothing is said, as its flags write it."""

    draft_tokens: str
    concurrency: str


def add_sweep_flags(parser: argparse.ArgumentParser, defaults: SweepDefaults) -> None:
    """Add `[MODEL]`, who drafts, what is asked, and the load."""
    parser.add_argument("--config", metavar="NAME_OR_FILE", help="settings to start from")
    add_option_flags(parser.add_argument_group("model"), ModelConfig)
    _add_drafter_flags(parser.add_argument_group("drafters"), defaults)
    _add_load_flags(parser.add_argument_group("load"), defaults)


def _add_drafter_flags(group: Any, defaults: SweepDefaults) -> None:
    group.add_argument(
        "--drafts",
        metavar="A,B,C+D",
        help="alternatives, each as --draft says it, with + where that has a comma "
        "(ngram,org/draft,ngram+org/draft); default: the configuration's draft, else ngram,suffix",
    )
    group.add_argument(
        "--draft-vocabulary",
        default=argparse.SUPPRESS,
        help=f"for drafts of another vocabulary: one of {', '.join(VOCABULARIES)} (default: auto)",
    )
    group.add_argument(
        "--draft-tokens",
        default=defaults.draft_tokens,
        metavar="K,K",
        help="static numbers of drafts, measured beside off and auto; '' = none "
        f"(default: {defaults.draft_tokens})",
    )


def _add_load_flags(group: Any, defaults: SweepDefaults) -> None:
    group.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="prompts, JSON lines as for outdraft generate; without it, a built-in workload",
    )
    group.add_argument(
        "--workload",
        default="chat",
        metavar="NAME,NAME",
        help=f"of {', '.join(WORKLOADS)}: built-in prompts, where there is no file (default: chat)",
    )
    group.add_argument(
        "--concurrency",
        default=defaults.concurrency,
        metavar="N,N",
        help=f"requests in flight (default: {defaults.concurrency})",
    )
    group.add_argument("--temperatures", default="0,1", metavar="T,T", help="default: 0,1")
    group.add_argument(
        "--max-tokens",
        type=int,
        default=64,
        help="tokens of an answer on average; answers have half to one and a half (default: 64)",
    )
    group.add_argument(
        "--tokens",
        type=int,
        help="tokens measured per lane and point (default: two answers for each request in "
        "flight, at least 512)",
    )
    group.add_argument(
        "--warm-up-tokens",
        type=int,
        help="tokens before that (default: one answer for each request, at least 128)",
    )
    group.add_argument(
        "--parts", type=int, default=5, help="parts of the tokens, for the spread (default: 5)"
    )
    add_data_flag(group)


def add_data_flag(group: Any) -> None:
    """Add where the corpora of the demo pair lie; of no use to anybody else."""
    group.add_argument("--data-dir", type=Path, default=SHARED / "data", help=argparse.SUPPRESS)


def sweep_from_args(args: argparse.Namespace) -> Sweep:
    """Read what is measured.

    Raises:
        ConfigError: a value that is no number, or cannot be measured.
    """
    return Sweep(
        draft_tokens=numbers("draft-tokens", args.draft_tokens, int),
        concurrencies=tuple(sorted(numbers("concurrency", args.concurrency, int))),
        temperatures=numbers("temperatures", args.temperatures, float),
        max_tokens=args.max_tokens,
        num_tokens=args.tokens,
        num_warm_up_tokens=args.warm_up_tokens,
        num_parts=args.parts,
    )


def asked_config(args: argparse.Namespace) -> EngineConfig:
    """Give the settings as they were asked for, the demo pair not filled in.

    Raises:
        ConfigError: a setting cannot be honoured.
    """
    return config_from_args(args, load_config(args.config) if args.config is not None else None)


def serve_command(args: argparse.Namespace) -> list[str]:
    """Give the words that serve the same model with the same settings."""
    model, vocabulary = getattr(args, "model", None), getattr(args, "draft_vocabulary", None)
    words = ["outdraft", "serve", *([] if model is None else [model])]
    words += [] if args.config is None else ["--config", args.config]
    return words + ([] if vocabulary is None else ["--draft-vocabulary", vocabulary])


def prompts_from_args(args: argparse.Namespace) -> list[PromptLine] | None:
    """Read the file of prompts, if one is named, before anything is loaded.

    Raises:
        ConfigError: no such workload.
        InvalidRequestError: the file cannot be read, or holds no prompts.
    """
    for name in _workload_names(args):
        if name not in WORKLOADS:
            raise ConfigError(f"workload: {name!r} is not one of {', '.join(WORKLOADS)}.")
    if args.prompts is None:
        return None
    lines = read_prompt_lines(args.prompts, "prompts")
    if not lines:
        raise InvalidRequestError(f"prompts: {args.prompts} holds no prompts.")
    return lines


def workloads_from_args(
    args: argparse.Namespace, lines: list[PromptLine] | None, tokenizer: PromptTokenizer
) -> list[Workload]:
    """Turn the prompts, or the built-in ones, into tokens.

    Raises:
        InvalidRequestError: a prompt cannot be understood.
    """
    if lines is None:
        names = _workload_names(args)
        return [built_in_workload(name, tokenizer, args.data_dir) for name in names]
    prompts = [line.token_ids(tokenizer) for line in lines]
    source = f"{len(prompts)} prompt{'' if len(prompts) == 1 else 's'} of {args.prompts.name}"
    return [Workload(args.prompts.stem, source, prompts)]


def _workload_names(args: argparse.Namespace) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in args.workload.split(",")))


def numbers(name: str, text: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    """Read a flag's numbers with commas between.

    Raises:
        ConfigError: something else.
    """
    try:
        return tuple(kind(word) for word in text.split(",") if text.strip())
    except ValueError:
        raise ConfigError(f"{name}: {text!r} is no list of numbers, such as 1,2,4.") from None
