"""What background work does to real-time answers, and how much it gets done beside them.

Three loads on offline engines, in turn, round after round: real-time requests alone (Poisson
arrivals), background work alone (never less than could be taken), and both. Told are the real-time
answers' times to the first token and between tokens, and everybody's tokens per second. Background
work alone has an engine of its own, over the same models: one that never sees a real-time request.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from benchmarks.page_files import write_page
from benchmarks.pages import Page, show_page
from benchmarks.program import add_output_flags, run_program
from benchmarks.progress import show_progress
from benchmarks.report import machine_in_words, rounded, settings_of
from benchmarks.rounds import Numbers, Quantity, Spread, grid_of, over_rounds, percentile
from benchmarks.serving.arrivals import poisson_arrivals
from benchmarks.serving.prompt_sets import CHAT, FORMS, prompt_set
from benchmarks.throughput import offline_config, token_ids_of
from benchmarks.workbench import check_at_least
from benchmarks.workloads import SHARED
from engine.config import EngineConfig
from engine.config_files import resolve
from engine.config_flags import add_config_flags
from engine.core import EngineCore
from engine.door import ModelInfo, make_requests
from engine.errors import ConfigError
from engine.model_pair import load_pair, resolve_device
from engine.prompts import PromptTokenizer
from engine.request import Request, RequestDelta
from engine.sampling_params import SamplingParams
from engine.tokenization import load_tokenizer

_MS = 1000.0
_REAL_TIME, _BATCH, _BOTH = "real-time alone", "batch alone", "both"
_LOADS = (_REAL_TIME, _BATCH, _BOTH)
_NUM_PROMPTS = 64
_WARM_UP_ANSWERS = 3
_QUANTITIES = [
    Quantity("ttft_ms_p50", "real-time: first token, p50, ms", 2),
    Quantity("ttft_ms_p99", "real-time: first token, p99, ms", 2),
    Quantity("itl_ms_p50", "real-time: between tokens' events, p50, ms", 2),
    Quantity("itl_ms_p99", "real-time: between tokens' events, p99, ms", 2),
    Quantity("real_time_answers", "real-time: whole answers", 0),
    Quantity("real_time_tokens_per_s", "real-time: tokens/s"),
    Quantity("batch_tokens_per_s", "batch: tokens/s"),
    Quantity("tokens_per_s", "all: tokens/s"),
]
_WORSE = ("ttft_ms_p50", "ttft_ms_p99", "itl_ms_p50", "itl_ms_p99")

Ask = Callable[[bool], Request]
"""Makes the next request, real-time or background."""


@dataclass(slots=True)
class Seen:
    """What was seen of a load.

    Attributes:
        first_s: of each real-time answer, seconds from when it was due to its first token.
        gaps_s: between deltas of real-time answers.
        num_answers: real-time answers that came to their end.
        num_tokens: of real-time answers, and of background work.
        seconds: that it lasted.
    """

    first_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    num_answers: int = 0
    num_tokens: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})
    seconds: float = 0.0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the program's flags."""
    parser.add_argument("--config", metavar="NAME_OR_FILE", help="settings to start from")
    add_config_flags(parser)
    group = parser.add_argument_group("what is asked")
    group.add_argument(
        "--load",
        type=float,
        default=0.3,
        help="real-time answers under way on average, were each alone (default: 0.3)",
    )
    group.add_argument("--prompts", metavar="SET", default=CHAT, help=", ".join(FORMS))
    group.add_argument("--batch-prompts", metavar="SET", default=CHAT, help="likewise")
    group.add_argument(
        "--data", type=Path, metavar="DIR", help="of published sets (default: ../shared/data)"
    )
    group.add_argument("--max-tokens", type=int, default=64, help="of answers (default: 64)")
    group.add_argument("--batch-max-tokens", type=int, default=128, help="default: 128")
    group.add_argument("--temperature", type=float, default=0.0, help="default: 0")
    group.add_argument("--seed", type=int, default=0, help="of arrivals and sampling")
    group.add_argument("--seconds", type=float, default=20.0, help="of a load (default: 20)")
    group.add_argument("--repeats", type=int, default=3, help="rounds of all loads (default: 3)")
    add_output_flags(parser, "background")


def run(args: argparse.Namespace) -> int:
    """Measure, and tell.

    Raises:
        ConfigError: a setting cannot be honoured.
        InvalidRequestError: a prompt cannot be understood.
        ModelLoadError: the model cannot be loaded.
    """
    _check(args)
    config, console = resolve(offline_config(args)), Console()
    models = load_pair(config)
    core = EngineCore(config, models)
    cores = {_REAL_TIME: core, _BATCH: EngineCore(config, models), _BOTH: core}
    ask = _asker(config, core.info, args)
    rate = args.load / _answer_seconds(core, ask)
    rounds: dict[str, list[Numbers]] = {load: [] for load in _LOADS}
    with show_progress(args.repeats * len(_LOADS)) as on_progress:
        # The first steps teach what steps take.
        for load in (_BATCH, _BOTH):
            _serve(cores[load], ask, load, [], args.seconds / 4)
        for number in range(args.repeats):
            arrivals = _arrivals(rate, args, number)
            for place, load in enumerate(_LOADS):
                on_progress(load, float(number * len(_LOADS) + place))
                seen = _serve(cores[load], ask, load, arrivals, args.seconds)
                rounds[load].append(numbers_of(seen))
    points: dict[str, Spread] = {load: over_rounds(found) for load, found in rounds.items()}
    comparison = compare(rounds)
    page = Page(
        title="Outdraft background work",
        facts={
            "model": core.info.model_name,
            "machine": machine_in_words(resolve_device(config.model.device).type),
            "real-time": f"{rate:.2f} requests/s, {args.prompts}, {args.max_tokens} tokens back",
            "batch": f"{args.batch_prompts}, {args.batch_max_tokens} tokens back",
            "background_slowdown": f"{config.scheduler.background_slowdown:g}",
        },
        grids=[grid_of("by load: median (lowest to highest)", _QUANTITIES, points)],
        notes=[f"{name}: {value:.2f}" for name, value in comparison.items()],
    )
    show_page(console, page)
    rows = [{"load": load, "rounds": rounded(found)} for load, found in rounds.items()]
    content: dict[str, Any] = {"settings": settings_of(args), "facts": page.facts, "rows": rows}
    write_page(args, console, page, {**content, "comparison": rounded(comparison)})
    return 0


def numbers_of(seen: Seen) -> Numbers:
    """Give the quantities of a load."""
    numbers: Numbers = {}
    for name, values in (("ttft", seen.first_s), ("itl", seen.gaps_s)):
        for percent in (50, 99):
            found = percentile(values, percent)
            numbers[f"{name}_ms_p{percent}"] = None if found is None else found * _MS
    numbers["real_time_answers"] = float(seen.num_answers)
    numbers["real_time_tokens_per_s"] = seen.num_tokens[False] / seen.seconds
    numbers["batch_tokens_per_s"] = seen.num_tokens[True] / seen.seconds
    numbers["tokens_per_s"] = sum(seen.num_tokens.values()) / seen.seconds
    return numbers


def compare(rounds: dict[str, list[Numbers]]) -> dict[str, float]:
    """Give what both loads together are over each of them alone, round by round: the median.

    Real-time times are over those of real-time alone, tokens per second over those of batch alone.
    """
    pairs = [(name, _REAL_TIME) for name in _WORSE] + [("tokens_per_s", _BATCH)]
    found: dict[str, float] = {}
    for name, load in pairs:
        ratios = [
            both[name] / alone[name]  # type: ignore[operator]
            for both, alone in zip(rounds[_BOTH], rounds[load], strict=True)
            if both.get(name) and alone.get(name)
        ]
        if ratios:
            found[f"{name} over {load}"] = median(ratios)
    return found


def _check(args: argparse.Namespace) -> None:
    for name, low in (("max_tokens", 1), ("batch_max_tokens", 1), ("repeats", 1), ("seed", 0)):
        check_at_least(name.replace("_", "-"), getattr(args, name), low)
    for name in ("load", "seconds"):
        if getattr(args, name) <= 0:
            raise ConfigError(f"{name}: {getattr(args, name):g} is not above 0.")


def _asker(config: EngineConfig, info: ModelInfo, args: argparse.Namespace) -> Ask:
    model, data_dir = config.model, args.data or SHARED / "data"
    assert model.model is not None, "resolve() names a model"
    tokenizer = PromptTokenizer(
        model.model, load_tokenizer(model.model, model.revision, model.trust_remote_code)
    )
    names = {False: args.prompts, True: args.batch_prompts}
    most = {False: args.max_tokens, True: args.batch_max_tokens}
    prompts: dict[bool, list[list[int]]] = {}
    lengths: dict[bool, list[int]] = {}
    for whose, name in names.items():
        asks = prompt_set(name, data_dir, _NUM_PROMPTS, args.seed).asks
        prompts[whose] = [token_ids_of(tokenizer, ask) for ask in asks]
        lengths[whose] = [ask.num_output_tokens or most[whose] for ask in asks]
    numbers = count()

    def ask(is_background: bool) -> Request:
        number = next(numbers)
        place = number % len(prompts[is_background])
        params = SamplingParams(
            temperature=args.temperature,
            seed=args.seed + number,
            max_tokens=lengths[is_background][place],
            ignore_eos=True,
        )
        return make_requests(
            prompts[is_background][place],
            params,
            request_id=f"{'batch' if is_background else 'chat'}-{number}",
            info=info,
            is_background=is_background,
        )[0]

    return ask


def _answer_seconds(core: EngineCore, ask: Ask) -> float:
    """Give how long a real-time answer takes that is alone."""
    seconds: list[float] = []
    for _ in range(_WARM_UP_ANSWERS):
        began = time.perf_counter()
        core.add_request(ask(False))
        while core.has_unfinished:
            core.step()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _arrivals(rate: float, args: argparse.Namespace, number: int) -> list[float]:
    """Give when real-time requests come in a round: the same for all of its loads."""
    most = max(2, round(4 * rate * args.seconds))
    arrivals = poisson_arrivals(rate, most, args.seed + number)
    return [arrival for arrival in arrivals if arrival < args.seconds]


def _serve(core: EngineCore, ask: Ask, load: str, arrivals: list[float], seconds: float) -> Seen:
    """Serve a load for so many seconds; what is left of it then is given up."""
    seen = Seen()
    due: dict[str, float] = {}
    last: dict[str, float] = {}
    coming = iter([] if load == _BATCH else arrivals)
    next_s = next(coming, None)
    num_batch = 0 if load == _REAL_TIME else 2 * core.config.scheduler.max_num_seqs
    open_ids: set[str] = set()
    began = time.perf_counter()
    while (now := time.perf_counter() - began) < seconds:
        while next_s is not None and next_s <= now:
            request = ask(False)
            due[request.request_id] = next_s
            open_ids.add(request.request_id)
            core.add_request(request)
            next_s = next(coming, None)
        for request in _refill(ask, num_batch - (len(open_ids) - len(due))):
            open_ids.add(request.request_id)
            core.add_request(request)
        if not core.has_unfinished:
            time.sleep(min(seconds, next_s if next_s is not None else seconds) - now)
            continue
        deltas = core.step()
        now = time.perf_counter() - began
        for delta in deltas:
            _note(seen, delta, now, due, last)
            if delta.finish_reason is not None:
                open_ids.discard(delta.request_id)
                due.pop(delta.request_id, None)
    seen.seconds = time.perf_counter() - began
    core.abort(open_ids)
    core.step()
    return seen


def _refill(ask: Ask, num_lacking: int) -> Iterator[Request]:
    for _ in range(num_lacking):
        yield ask(True)


def _note(
    seen: Seen, delta: RequestDelta, now: float, due: dict[str, float], last: dict[str, float]
) -> None:
    name = delta.request_id
    is_background = name not in due
    seen.num_tokens[is_background] += len(delta.new_token_ids)
    if is_background:
        return
    if delta.new_token_ids:
        if name in last:
            seen.gaps_s.append(now - last[name])
        else:
            seen.first_s.append(now - due[name])
        last[name] = now
    seen.num_answers += delta.finish_reason is not None


def main() -> int:
    """Run the benchmark as a program of its own."""
    return run_program(__doc__, add_flags, run)


if __name__ == "__main__":
    sys.exit(main())
