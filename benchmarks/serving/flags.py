"""The flags of `bench serve`: what they are, which contradict each other, and what they ask for."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.program import add_output_flags
from benchmarks.serving.arrivals import poisson_arrivals, read_trace
from benchmarks.serving.points import Load
from benchmarks.serving.processes import given_engine_options
from benchmarks.serving.prompt_sets import (
    CHAT,
    COMPLETIONS,
    FORMS,
    PromptSet,
    body_of,
    made_up,
    prompt_set,
    reads_data,
)
from benchmarks.serving.statistics import Terms
from benchmarks.sweep_flags import numbers
from benchmarks.workbench import check_at_least
from benchmarks.workloads import SHARED
from engine.config_files import load_config
from engine.config_flags import add_config_flags, config_from_args
from engine.errors import ConfigError

_CONCURRENCY = "1,8,32"
_PER_STREAM, _AT_LEAST = 4, 32
_OPEN_S = 30.0
_TRACED = 256
_MAX_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured.

    Attributes:
        prompts: what is asked.
        loads: the points.
        x_label: of charts over the load.
        terms: what results are held against.
    """

    prompts: PromptSet
    loads: list[Load]
    x_label: str
    terms: Terms


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    _add_server_flags(parser.add_argument_group("a server that runs"))
    own = parser.add_argument_group("or one of our own, with outdraft serve's flags")
    own.add_argument("--config", metavar="NAME_OR_FILE", help="settings to start from")
    add_config_flags(parser)
    _add_load_flags(parser.add_argument_group("load"))
    _add_measure_flags(parser.add_argument_group("measurement"))
    add_output_flags(parser, "serve")


def plan_of(args: argparse.Namespace) -> Plan:
    """Read what is asked for, before anything is started.

    Raises:
        ConfigError: flags contradict each other, or a value cannot be measured.
        InvalidRequestError: a file of prompts cannot be read.
    """
    _check_contradictions(args)
    _check_values(args)
    if args.trace is not None:
        prompts, loads, x_label = _traced(args)
    else:
        loads, x_label = _loads(args)
        count = max(load.num_requests for load in loads)
        prompts = prompt_set(_form(args), args.data or SHARED / "data", count, args.seed)
    if prompts.prompt_tokens and args.max_tokens is not None:
        raise ConfigError(f"max-tokens: {prompts.name} says how long answers are.")
    body_of(prompts.asks[0], args.endpoint)
    terms = Terms(
        slo_ttft_ms=args.slo_ttft_ms,
        slo_tpot_ms=args.slo_tpot_ms,
        price_per_hour=args.price_per_hour,
    )
    return Plan(prompts=prompts, loads=loads, x_label=x_label, terms=terms)


def headers_of(args: argparse.Namespace) -> dict[str, str]:
    """Give the headers that every request carries: the key, if one is needed.

    Raises:
        ConfigError: the environment has no such variable.
    """
    if args.api_key_env is None:
        return {}
    key = os.environ.get(args.api_key_env)
    if not key:
        raise ConfigError(f"api-key-env: {args.api_key_env} is not set.")
    return {"Authorization": f"Bearer {key}"}


def max_tokens_of(args: argparse.Namespace) -> int:
    """Give the length of answers whose prompt says nothing else."""
    return _MAX_TOKENS if args.max_tokens is None else int(args.max_tokens)


def _add_server_flags(group: Any) -> None:
    group.add_argument("--url", help="of any OpenAI-compatible server, with or without /v1")
    group.add_argument("--model-name", help="on the wire (default: the first that it lists)")
    group.add_argument(
        "--api-key-env", metavar="NAME", help="environment variable that holds the server's key"
    )


def _add_load_flags(group: Any) -> None:
    group.add_argument(
        "--concurrency",
        metavar="N,N",
        help=f"closed loop: requests in flight at all times (default: {_CONCURRENCY})",
    )
    group.add_argument("--rate", metavar="R,R", help="open loop: requests per second, Poisson")
    group.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="open loop: arrivals and lengths of a CSV file of Azure's form",
    )
    group.add_argument(
        "--trace-speed", metavar="X,X", help="how many times faster than it was (default: 1)"
    )
    group.add_argument("--prompts", metavar="SET", help=f"{', '.join(FORMS)} (default: {CHAT})")
    group.add_argument(
        "--data", type=Path, metavar="DIR", help="of published sets (default: ../shared/data)"
    )
    group.add_argument(
        "--requests",
        type=int,
        help=f"of each point and round (default: {_PER_STREAM} per stream, at least {_AT_LEAST}; "
        f"{_OPEN_S:g} seconds of arrivals and as many at least; the first {_TRACED} of a trace)",
    )
    group.add_argument("--max-tokens", type=int, help=f"of answers (default: {_MAX_TOKENS})")
    group.add_argument(
        "--endpoint", choices=(CHAT, COMPLETIONS), default=CHAT, help=f"default: {CHAT}"
    )
    group.add_argument("--temperature", type=float, default=0.0, help="default: 0")
    group.add_argument("--seed", type=int, default=0, help="of texts, arrivals and sampling")


def _add_measure_flags(group: Any) -> None:
    group.add_argument("--repeats", type=int, default=3, help="rounds (default: 3)")
    group.add_argument("--warm-up", type=int, default=8, help="requests before them (default: 8)")
    group.add_argument(
        "--timeout-s", type=float, default=600.0, help="of a whole answer (default: 600)"
    )
    group.add_argument("--slo-ttft-ms", type=float, help="goodput: first token within")
    group.add_argument("--slo-tpot-ms", type=float, help="goodput: each further token within")
    group.add_argument("--price-per-hour", type=float, help="of the machine, in any currency")
    group.add_argument(
        "--client-floor",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure this client against a server that answers at once (default: yes)",
    )


def _form(args: argparse.Namespace) -> str:
    return CHAT if args.prompts is None else str(args.prompts)


def _check_contradictions(args: argparse.Namespace) -> None:
    given = [name for name in ("concurrency", "rate", "trace") if getattr(args, name) is not None]
    if len(given) > 1:
        raise ConfigError(f"{given[1]}: contradicts --{given[0]}; a run has one kind of load.")
    if args.trace is None and args.trace_speed is not None:
        raise ConfigError("trace-speed: there is no --trace.")
    if args.trace is not None and args.prompts is not None:
        raise ConfigError("prompts: contradicts --trace, whose prompts are made up to its lengths.")
    if args.data is not None and not reads_data(_form(args)):
        raise ConfigError(f"data: prompts {_form(args)} do not come from there.")
    if args.url is None:
        for name in ("model_name", "api_key_env"):
            if getattr(args, name) is not None:
                raise ConfigError(f"{name.replace('_', '-')}: there is no --url.")
        config_from_args(args, None if args.config is None else load_config(args.config))
        return
    engine = given_engine_options(args)
    if args.config is not None or engine:
        name = "config" if args.config is not None else next(iter(engine)).replace("_", "-")
        raise ConfigError(f"{name}: contradicts --url, whose server has its own settings.")


def _check_values(args: argparse.Namespace) -> None:
    for name, low in (("repeats", 1), ("warm_up", 0), ("requests", 1), ("max_tokens", 1)):
        if getattr(args, name) is not None:
            check_at_least(name.replace("_", "-"), getattr(args, name), low)
    for name in ("timeout_s", "slo_ttft_ms", "slo_tpot_ms", "price_per_hour"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{name.replace('_', '-')}: {value:g} is not above 0.")
    if not 0 <= args.temperature < float("inf"):
        raise ConfigError(f"temperature: {args.temperature:g} is below 0.")


def _loads(args: argparse.Namespace) -> tuple[list[Load], str]:
    if args.rate is None:
        text = _CONCURRENCY if args.concurrency is None else args.concurrency
        counts = _positive("concurrency", numbers("concurrency", text, int))
        streams = [int(count) for count in counts]
        return [
            Load(
                label=f"{n} at once",
                place=float(n),
                num_requests=args.requests or max(_PER_STREAM * n, _AT_LEAST),
                concurrency=n,
            )
            for n in streams
        ], "requests in flight"
    return [
        _poisson(rate, args) for rate in _positive("rate", numbers("rate", args.rate, float))
    ], "requests per second"


def _poisson(rate: float, args: argparse.Namespace) -> Load:
    count = args.requests or max(round(_OPEN_S * rate), _AT_LEAST)
    arrivals = poisson_arrivals(rate, count, args.seed)
    return Load(f"{rate:g} per s", rate, count, arrivals_s=tuple(arrivals))


def _traced(args: argparse.Namespace) -> tuple[PromptSet, list[Load], str]:
    traced = read_trace(args.trace, args.requests or _TRACED)
    lengths = [(request.num_prompt_tokens, request.num_output_tokens) for request in traced]
    prompts = made_up(f"trace {args.trace.name}", lengths, args.seed)
    speeds = numbers("trace-speed", "1" if args.trace_speed is None else args.trace_speed, float)
    loads = [
        Load(
            label=f"{speed:g}x the trace",
            place=speed,
            num_requests=len(traced),
            arrivals_s=tuple(request.arrival_s / speed for request in traced),
        )
        for speed in _positive("trace-speed", speeds)
    ]
    source = f"{prompts.source}, as long as {len(traced)} requests of {args.trace.name}"
    return replace(prompts, source=source), loads, "speed over the trace's"


def _positive(name: str, values: tuple[Any, ...]) -> list[Any]:
    if not values:
        raise ConfigError(f"{name}: there is no number.")
    for value in values:
        if not 0 < value < float("inf"):
            raise ConfigError(f"{name}: {value:g} is not above 0.")
    return sorted(set(values))
