"""How many tokens per second the offline engine gives for a set of prompts, all given at once.

`outdraft bench throughput` and `python -m benchmarks.throughput` are this program. Rounds repeat
the same prompts, so the prefix cache is off unless `--prefix-caching` asks for it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.page_files import write_page
from benchmarks.pages import Page, show_page
from benchmarks.program import add_output_flags, run_program
from benchmarks.progress import OnProgress, show_progress
from benchmarks.report import machine_in_words, rounded, settings_of
from benchmarks.rounds import Numbers, Quantity, grid_of, over_rounds
from benchmarks.serving.prompt_sets import CHAT, FORMS, Ask, PromptSet, prompt_set, reads_data
from benchmarks.workbench import check_at_least
from benchmarks.workloads import SHARED
from engine.config import EngineConfig
from engine.config_files import load_config
from engine.config_flags import add_config_flags, config_from_args
from engine.errors import ConfigError
from engine.llm import LLM, RunStats
from engine.model_pair import resolve_device
from engine.prompts import PromptTokenizer
from engine.sampling_params import SamplingParams

_MAX_TOKENS = 64
_QUANTITIES = [
    Quantity("tokens_per_s", "tokens/s"),
    Quantity("requests_per_s", "requests/s", 2),
    Quantity("all_tokens_per_s", "tokens/s, prompts included"),
    Quantity("seconds", "seconds", 2),
    Quantity("output_tokens", "answer tokens", 0),
    Quantity("prompt_tokens", "prompt tokens", 0),
    Quantity("tokens_per_target_pass", "tokens per target pass", 2),
    Quantity("draft_share", "share of time: drafting", 3),
    Quantity("target_share", "share of time: target", 3),
    Quantity("overhead_share", "share of time: the rest of steps", 3),
    Quantity("cost_per_million_tokens", "cost per million tokens", 3),
]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("--config", metavar="NAME_OR_FILE", help="settings to start from")
    add_config_flags(parser)
    group = parser.add_argument_group("what is asked")
    group.add_argument("--prompts", metavar="SET", default=CHAT, help=f"{', '.join(FORMS)}")
    group.add_argument(
        "--data", type=Path, metavar="DIR", help="of published sets (default: ../shared/data)"
    )
    group.add_argument("--requests", type=int, default=32, help="of a round (default: 32)")
    group.add_argument("--max-tokens", type=int, help=f"of answers (default: {_MAX_TOKENS})")
    group.add_argument("--temperature", type=float, default=0.0, help="default: 0")
    group.add_argument("--seed", type=int, default=0, help="of texts and sampling")
    group.add_argument("--repeats", type=int, default=3, help="rounds, after one to warm up")
    group.add_argument("--price-per-hour", type=float, help="of the machine, in any currency")
    add_output_flags(parser, "throughput")


def run(args: argparse.Namespace) -> int:
    """Measure, and tell.

    Raises:
        ConfigError: a setting cannot be honoured.
        InvalidRequestError: a prompt cannot be understood.
        ModelLoadError: the model cannot be loaded.
    """
    prompts, config, console = _prompts(args), offline_config(args), Console()
    llm = LLM(config=config)
    token_ids, params = _requests(args, llm, prompts)
    with show_progress(args.repeats + 1) as on_progress:
        rounds = [
            _round(llm, token_ids, params, args, on_progress, number)
            for number in range(args.repeats + 1)
        ][1:]
    page = Page(
        title="Outdraft bench throughput",
        facts={
            "model": llm.info.model_name,
            "machine": machine_in_words(resolve_device(config.model.device).type),
            "prompts": f"{prompts.name}: {prompts.source}, {args.requests} requests",
            "prefix cache": "on" if config.cache.prefix_caching else "off",
        },
        grids=[grid_of("median (lowest to highest)", _QUANTITIES, {"": over_rounds(rounds)})],
    )
    show_page(console, page)
    content = {"settings": settings_of(args), "facts": page.facts, "rounds": rounded(rounds)}
    write_page(args, console, page, content)
    return 0


def offline_config(args: argparse.Namespace) -> EngineConfig:
    """Give the engine's settings; the prefix cache is off unless it is asked for.

    Raises:
        ConfigError: a setting cannot be honoured.
    """
    base = None if args.config is None else load_config(args.config)
    config = config_from_args(args, base)
    if getattr(args, "prefix_caching", False):
        return config
    return replace(config, cache=replace(config.cache, prefix_caching=False))


def _prompts(args: argparse.Namespace) -> PromptSet:
    for name, low in (("requests", 1), ("repeats", 1), ("max_tokens", 1), ("seed", 0)):
        if getattr(args, name) is not None:
            check_at_least(name.replace("_", "-"), getattr(args, name), low)
    if args.price_per_hour is not None and args.price_per_hour <= 0:
        raise ConfigError(f"price-per-hour: {args.price_per_hour:g} is not above 0.")
    if args.data is not None and not reads_data(args.prompts):
        raise ConfigError(f"data: prompts {args.prompts} do not come from there.")
    prompts = prompt_set(args.prompts, args.data or SHARED / "data", args.requests, args.seed)
    if prompts.prompt_tokens and args.max_tokens is not None:
        raise ConfigError(f"max-tokens: {prompts.name} says how long answers are.")
    return prompts


def _requests(
    args: argparse.Namespace, llm: LLM, prompts: PromptSet
) -> tuple[list[list[int]], list[SamplingParams]]:
    """Give token ids and settings of all requests; made-up prompts have exactly their length."""
    token_ids, params = [], []
    for number in range(args.requests):
        ask = prompts.asks[number % len(prompts.asks)]
        token_ids.append(token_ids_of(llm.prompt_tokenizer, ask))
        params.append(
            SamplingParams(
                temperature=args.temperature,
                seed=args.seed + number,
                max_tokens=ask.num_output_tokens or args.max_tokens or _MAX_TOKENS,
                ignore_eos=True,
            )
        )
    return token_ids, params


def token_ids_of(tokenizer: PromptTokenizer, ask: Ask) -> list[int]:
    """Give the tokens of a prompt; a made-up one has exactly its length."""
    prompt = ask.prompt
    if isinstance(prompt, str):
        if ask.num_words is not None:
            ids = tokenizer.encode(prompt)
            return (ids * (ask.num_words // len(ids) + 1))[: ask.num_words]
        if tokenizer.has_chat_template:
            return tokenizer.render_chat([{"role": "user", "content": prompt}])
        return tokenizer.encode(prompt)
    return tokenizer.render_chat(prompt) if isinstance(prompt[0], dict) else prompt


def _round(
    llm: LLM,
    token_ids: list[list[int]],
    params: list[SamplingParams],
    args: argparse.Namespace,
    on_progress: OnProgress,
    number: int,
) -> Numbers:
    name = f"round {number}" if number else "warm-up"
    wanted = sum(setting.max_tokens or 0 for setting in params)

    def on_step(stats: RunStats) -> None:
        on_progress(name, number + stats.num_output_tokens / wanted)

    llm.generate(token_ids, params, on_progress=on_step)
    return _numbers(llm.last_run, sum(map(len, token_ids)), args.price_per_hour)


def _numbers(stats: RunStats, num_prompt_tokens: int, price_per_hour: float | None) -> Numbers:
    seconds, tokens = stats.generation_seconds, stats.num_output_tokens
    cost = None if price_per_hour is None else price_per_hour * seconds / 3600 / tokens * 1e6
    values: dict[str, Any] = {
        "tokens_per_s": stats.tokens_per_second,
        "requests_per_s": stats.num_requests / seconds,
        "all_tokens_per_s": (tokens + num_prompt_tokens) / seconds,
        "seconds": seconds,
        "output_tokens": float(tokens),
        "prompt_tokens": float(num_prompt_tokens),
        "tokens_per_target_pass": stats.speculation.tokens_per_target_pass,
        "draft_share": stats.draft_seconds / seconds,
        "target_share": stats.target_seconds / seconds,
        "overhead_share": stats.overhead_seconds / seconds,
        "cost_per_million_tokens": cost,
    }
    return values


def main() -> int:
    """Run the benchmark as a program of its own."""
    return run_program(__doc__, add_flags, run)


if __name__ == "__main__":
    sys.exit(main())
