"""What requests of an engine in this process cost in memory beyond their keys and values.

Waiting ones stand in the queue behind another while steps go on; running ones decode. The growth of
the process is told of the first time alone, since later requests use again what earlier ones
freed; what Python allocates is told of every round. The larger of the two counts.
"""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any
from unittest.mock import patch

import psutil

from benchmarks.growth.findings import Findings, Verdict, spread_text
from benchmarks.pages import Grid
from benchmarks.progress import show_progress
from benchmarks.report import rounded
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.door import make_requests
from engine.kv_cache.storage import KVCacheStorage, bytes_per_block
from engine.model_pair import ModelPair
from engine.request import Request, RequestStatus
from engine.runner import model_runner
from engine.sampling_params import SamplingParams

BAR_KB = 50.0
_STEPS = 8
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
        repeats: rounds.
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
            with _cache_in_memory():
                core = EngineCore(_config_for(config, models, most, plan.prompt_tokens), models)
            # Those that wait stand behind one that runs, which is there before.
            in_front = 1 if state == "waiting" else 0
            kilobytes = []
            for number in range(plan.repeats + 1):
                on_progress(f"{count} {state}", float(place * (plan.repeats + 1) + number))
                with _meter(is_first=number == 0) as meter:
                    grown = _grown_bytes(core, count, in_front, plan.prompt_tokens, meter)
                kilobytes.append(grown / count / _KB)
            resident, allocated = kilobytes[0], kilobytes[1:]
            worst = max(resident, median(allocated))
            what = f"memory per {state} request, engine in this process"
            found.verdicts.append(memory_verdict(what, worst))
            cells.append((state, str(count), f"{resident:.1f}", spread_text(allocated, 2)))
            found.rows.append(
                {
                    "state": state,
                    "requests": count,
                    "prompt_tokens": plan.prompt_tokens,
                    "resident_kb": rounded(resident),
                    "allocated_kb": rounded(allocated),
                }
            )
    heads = ("requests", "number", "process grew, kB each", "Python allocated, kB each")
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
def _cache_in_memory() -> Iterator[None]:
    """Let KV caches be in memory from the start, which otherwise come as blocks are written."""

    def make(*args: Any) -> KVCacheStorage:
        storage = KVCacheStorage(*args)
        for cache in (*storage.key_caches, *storage.value_caches):
            cache.fill_(0)
        return storage

    with patch.object(model_runner, "KVCacheStorage", make):
        yield


@contextmanager
def _meter(*, is_first: bool) -> Iterator[Meter]:
    """Measure the process the first time, and what Python allocated from then on."""
    if is_first:
        process = psutil.Process()
        yield lambda: int(process.memory_info().rss)
        return
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
    return replace(config, cache=cache, model=model, scheduler=scheduler)
