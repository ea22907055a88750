"""What requests of an engine in this process cost in memory beyond their keys and values.

Waiting ones stand in the queue behind another while steps go on; running ones decode. Told are what
Python allocated and by what the C library's heap in use grew. Python takes large objects from
there, too, so the two together, held against the bar, are more than there is. Where `auto` would
choose numbers of drafts they are fixed, since libraries keep something of every new shape of a
batch, which is no request's.
"""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median

from benchmarks.growth.findings import Findings, Verdict, spread_text
from benchmarks.growth.native_memory import native_bytes
from benchmarks.pages import Grid
from benchmarks.progress import show_progress
from benchmarks.report import rounded
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.door import make_requests
from engine.kv_cache.storage import bytes_per_block
from engine.model_pair import ModelPair
from engine.request import Request, RequestStatus
from engine.sampling_params import SamplingParams

BAR_KB = 50.0
_STEPS = 4
_DRAFT_TOKENS = 2
_ROOM_TOKENS = 512
_KB = 1000.0
Meter = Callable[[], int]
"""Gives bytes."""


@dataclass(frozen=True, slots=True)
class IdlePlan:
    """How many requests are held, and how often.

    Attributes:
        waiting: in the queue.
        running: with blocks of the KV cache.
        prompt_tokens: of each.
        repeats: rounds, after one to warm up.
    """

    waiting: int
    running: int
    prompt_tokens: int
    repeats: int


def idle_requests(config: EngineConfig, models: ModelPair, plan: IdlePlan) -> Findings:
    """Measure memory per request that waits, and per request that runs."""
    found, cells = Findings(), []
    states = {"waiting": (plan.waiting, 1), "running": (plan.running, plan.running)}
    with show_progress(len(states) * (plan.repeats + 1)) as on_progress:
        for place, (state, (count, most)) in enumerate(states.items()):
            core = EngineCore(_config_for(config, models, most, plan.prompt_tokens), models)
            # Those that wait stand behind one that runs, which is there before.
            in_front = 1 if state == "waiting" else 0
            native: list[float] = []
            allocated: list[float] = []
            for number in range(plan.repeats + 1):
                on_progress(f"{count} {state}", float(place * (plan.repeats + 1) + number))
                asked = (core, count, in_front, plan.prompt_tokens)
                in_use = _grown_bytes(*asked, native_bytes) / count / _KB
                with _traced() as meter:
                    of_python = _grown_bytes(*asked, meter) / count / _KB
                # The first round makes what all requests share.
                native += [in_use] if number else []
                allocated += [of_python] if number else []
            each = median(native) + median(allocated)
            what = f"memory per {state} request, engine in this process"
            found.verdicts.append(memory_verdict(what, each))
            cells.append((state, str(count), spread_text(allocated, 2), spread_text(native, 2)))
            found.rows.append(
                {
                    "state": state,
                    "requests": count,
                    "prompt_tokens": plan.prompt_tokens,
                    "allocated_kb": rounded(allocated),
                    "native_kb": rounded(native),
                }
            )
    heads = ("requests", "number", "Python, kB each", "C heap, kB each")
    title = f"memory of requests beyond their KV cache, {plan.prompt_tokens} tokens of prompt"
    found.grids.append(Grid(title, heads, cells))
    return found


def memory_verdict(what: str, kilobytes: float) -> Verdict:
    """Hold kilobytes per request against the bar."""
    return Verdict(
        what=what,
        bar=f"< {BAR_KB:g} kB",
        measured=f"{kilobytes:.1f} kB",
        is_met=kilobytes < BAR_KB,
    )


@contextmanager
def _traced() -> Iterator[Meter]:
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def _grown_bytes(
    core: EngineCore, count: int, in_front: int, prompt_tokens: int, meter: Meter
) -> int:
    """Give the bytes that so many requests added, a few steps after the last of them came."""
    ids = [_add(core, number, prompt_tokens) for number in range(in_front)]
    _settle(core, in_front)
    gc.collect()
    before = meter()
    ids += [_add(core, in_front + number, prompt_tokens) for number in range(count)]
    _settle(core, core.config.scheduler.max_num_seqs)
    gc.collect()
    grown = meter() - before
    core.abort(ids)
    core.step()
    return grown


def _add(core: EngineCore, number: int, prompt_tokens: int) -> str:
    draw = random.Random(number)
    prompt = [draw.randrange(core.info.vocab_size) for _ in range(prompt_tokens)]
    params = SamplingParams(temperature=0.0, seed=number, ignore_eos=True)
    (request,) = make_requests(prompt, params, request_id=str(number), info=core.info)
    core.add_request(request)
    return request.request_id


def _settle(core: EngineCore, num_running: int) -> None:
    """Step until so many run and have a token, and a little further."""
    while sum(map(_has_token, core.scheduler.requests.values())) < num_running:
        core.step()
    for _ in range(_STEPS):
        core.step()


def _has_token(request: Request) -> bool:
    return request.status is RequestStatus.RUNNING and request.num_output_tokens > 0


def _config_for(
    config: EngineConfig, models: ModelPair, num_running: int, prompt_tokens: int
) -> EngineConfig:
    """Give an engine that lets so many run, with blocks for a few hundred tokens of each."""
    size = config.cache.block_size
    loaded = [model for model in (models.target, models.draft) if model is not None]
    longest = min(prompt_tokens + _ROOM_TOKENS, models.target.max_model_len)
    num_blocks = (-(-longest // size) + 1) * num_running + 1
    num_bytes = num_blocks * sum(bytes_per_block(m.layers, size, m.dtype) for m in loaded)
    cache = replace(config.cache, kv_cache_memory=str(num_bytes))
    scheduler = replace(config.scheduler, max_num_seqs=num_running)
    model = replace(config.model, max_model_len=longest)
    speculation = config.speculation
    if speculation.is_auto and speculation.drafters:
        speculation = replace(speculation, max_draft_tokens=_DRAFT_TOKENS)
    return replace(config, cache=cache, model=model, scheduler=scheduler, speculation=speculation)
