"""How soon the offline engine answers batches of prompts of one length, by batch size.

`outdraft bench latency` and `python -m benchmarks.latency` are this program. A batch is given to
the engine at once and stepped until all is answered; prompts are random tokens, new every time.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from dataclasses import dataclass, field, replace
from statistics import median

from rich.console import Console

from benchmarks.page_files import write_page
from benchmarks.pages import Chart, Mark, Page, show_page
from benchmarks.program import add_output_flags, run_program
from benchmarks.progress import show_progress
from benchmarks.report import machine_in_words, rounded, settings_of
from benchmarks.rounds import Numbers, Quantity, Spread, grid_of, over_rounds, percentile
from benchmarks.sweep_flags import numbers
from benchmarks.throughput import offline_config
from benchmarks.workbench import check_at_least
from engine.config_files import resolve
from engine.config_flags import add_config_flags
from engine.core import EngineCore
from engine.door import make_requests
from engine.errors import ConfigError
from engine.model_pair import resolve_device
from engine.sampling_params import SamplingParams

_MS = 1000.0
_QUANTITIES = [
    Quantity("first_token_ms", "first token of all requests, ms", 2),
    Quantity("per_token_ms_p50", "per token behind the first, p50 of requests, ms", 3),
    Quantity("per_token_ms_p99", "per token behind the first, p99 of requests, ms", 3),
    Quantity("step_ms_p50", "step behind the prompts, p50, ms", 3),
    Quantity("step_ms_p99", "step behind the prompts, p99, ms", 3),
    Quantity("batch_ms", "whole batch, ms"),
    Quantity("tokens_per_s", "tokens/s"),
    Quantity("tokens_per_step", "tokens per request and step", 2),
]


@dataclass(slots=True)
class Batch:
    """What was seen of a batch.

    Attributes:
        steps_s: behind each step, seconds since the batch was given.
        times_s: of each request's deltas, by its number.
        num_tokens: of each request.
    """

    steps_s: list[float] = field(default_factory=list)
    times_s: dict[str, list[float]] = field(default_factory=dict)
    num_tokens: dict[str, int] = field(default_factory=dict)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("--config", metavar="NAME_OR_FILE", help="settings to start from")
    add_config_flags(parser)
    group = parser.add_argument_group("what is asked")
    group.add_argument("--batch-sizes", default="1,8,32", metavar="N,N", help="default: 1,8,32")
    group.add_argument("--input-tokens", type=int, default=128, help="of a prompt (default: 128)")
    group.add_argument("--output-tokens", type=int, default=64, help="of an answer (default: 64)")
    group.add_argument("--temperature", type=float, default=0.0, help="default: 0")
    group.add_argument("--seed", type=int, default=0, help="of prompts and sampling")
    group.add_argument("--repeats", type=int, default=5, help="rounds, after one to warm up")
    add_output_flags(parser, "latency")


def run(args: argparse.Namespace) -> int:
    """Measure, and tell.

    Raises:
        ConfigError: a setting cannot be honoured.
        InvalidRequestError: prompt and answer do not fit the model.
        ModelLoadError: the model cannot be loaded.
    """
    sizes = _sizes(args)
    config, console = resolve(offline_config(args)), Console()
    if "max_num_seqs" not in args:
        config = replace(config, scheduler=replace(config.scheduler, max_num_seqs=max(sizes)))
    core = EngineCore(config)
    rounds: dict[int, list[Numbers]] = {size: [] for size in sizes}
    with show_progress((args.repeats + 1) * len(sizes)) as on_progress:
        for number in range(args.repeats + 1):
            for place, size in enumerate(sizes):
                on_progress(f"batches of {size}", float(number * len(sizes) + place))
                measured = _measure(core, args, size, number)
                # The first round warms up.
                rounds[size] += [measured] if number else []
    points: dict[str, Spread] = {str(size): over_rounds(found) for size, found in rounds.items()}
    page = Page(
        title="Outdraft bench latency",
        facts={
            "model": core.info.model_name,
            "machine": machine_in_words(resolve_device(config.model.device).type),
            "requests": f"{args.input_tokens} random tokens, {args.output_tokens} tokens back",
        },
        grids=[grid_of("by batch size: median (lowest to highest)", _QUANTITIES, points)],
        charts=[_chart(points, name) for name in ("first_token_ms", "per_token_ms_p50")],
    )
    show_page(console, page)
    rows = [{"batch_size": size, "rounds": rounded(found)} for size, found in rounds.items()]
    content = {"settings": settings_of(args), "facts": page.facts, "rows": rows}
    write_page(args, console, page, content)
    return 0


def _sizes(args: argparse.Namespace) -> list[int]:
    for name, low in (("input_tokens", 1), ("output_tokens", 2), ("repeats", 1), ("seed", 0)):
        check_at_least(name.replace("_", "-"), getattr(args, name), low)
    sizes = sorted(set(numbers("batch-sizes", args.batch_sizes, int)))
    if not sizes or sizes[0] < 1:
        raise ConfigError(f"batch-sizes: {args.batch_sizes!r} needs numbers from 1.")
    most = getattr(args, "max_num_seqs", None)
    if most is not None and sizes[-1] > most:
        raise ConfigError(f"batch-sizes: {sizes[-1]} is above --max-num-seqs {most}.")
    return sizes


def _measure(core: EngineCore, args: argparse.Namespace, size: int, number: int) -> Numbers:
    draw = random.Random(f"{args.seed}-{size}-{number}")
    params = SamplingParams(
        temperature=args.temperature,
        seed=args.seed,
        max_tokens=args.output_tokens,
        ignore_eos=True,
    )
    requests = [
        request
        for place in range(size)
        for request in make_requests(
            [draw.randrange(core.info.vocab_size) for _ in range(args.input_tokens)],
            params,
            request_id=f"{number}-{size}-{place}",
            info=core.info,
        )
    ]
    batch, began = Batch(), time.perf_counter()
    for request in requests:
        core.add_request(request)
    while core.has_unfinished:
        deltas = core.step()
        now = time.perf_counter() - began
        batch.steps_s.append(now)
        for delta in deltas:
            if delta.new_token_ids:
                batch.times_s.setdefault(delta.request_id, []).append(now)
                count = batch.num_tokens.get(delta.request_id, 0)
                batch.num_tokens[delta.request_id] = count + len(delta.new_token_ids)
    return batch_numbers(batch)


def batch_numbers(batch: Batch) -> Numbers:
    """Give the quantities of a batch."""
    first = max(times[0] for times in batch.times_s.values())
    per_token = [
        (times[-1] - times[0]) / (batch.num_tokens[name] - 1) * _MS
        for name, times in batch.times_s.items()
    ]
    ends = [time_s for time_s in batch.steps_s if time_s >= first]
    steps = [(after - before) * _MS for before, after in zip(ends, ends[1:], strict=False)]
    tokens, deltas = sum(batch.num_tokens.values()), sum(map(len, batch.times_s.values()))
    return {
        "first_token_ms": first * _MS,
        "per_token_ms_p50": median(per_token),
        "per_token_ms_p99": percentile(per_token, 99),
        "step_ms_p50": percentile(steps, 50),
        "step_ms_p99": percentile(steps, 99),
        "batch_ms": batch.steps_s[-1] * _MS,
        "tokens_per_s": tokens / batch.steps_s[-1],
        "tokens_per_step": tokens / deltas,
    }


def _chart(points: dict[str, Spread], name: str) -> Chart:
    label = next(quantity.label for quantity in _QUANTITIES if quantity.name == name)
    marks = [Mark(float(size), *found) for size, v in points.items() if (found := v.get(name))]
    return Chart(name, label.rpartition(",")[0], "requests in the batch", "ms", {"median": marks})


def main() -> int:
    """Run the benchmark as a program of its own."""
    return run_program(__doc__, add_flags, run)


if __name__ == "__main__":
    sys.exit(main())
