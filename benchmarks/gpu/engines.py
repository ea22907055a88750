"""Makes engines over the workshop's models, and keeps them under steady load.

The load is closed: an answer that ends is followed by the next request, so nothing drains. The
first requests are somewhere in the middle of their answers' lengths, so the load is steady from
the start. Every engine gets the same requests.
"""

from __future__ import annotations

import random
import statistics
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from benchmarks.gpu.device_times import synchronize
from benchmarks.gpu.workshop import Workshop
from engine.config import (
    CacheConfig,
    EngineConfig,
    ModelConfig,
    SchedulerConfig,
    SpeculationConfig,
)
from engine.core import EngineCore
from engine.door import make_requests
from engine.kv_cache.storage import bytes_per_block
from engine.model.loader import LoadedModel
from engine.model_pair import ModelPair
from engine.request import SpeculationStats
from engine.sampling_params import SamplingParams

MAX_BATCHED_TOKENS = 8192
_BLOCK_SIZE = 16
# Batches of every size come twice, as graphs are recorded then.
_WARM_UP_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an engine is for.

    Attributes:
        concurrency: requests in flight at most.
        longest: tokens of a request at most.
        draft: shape of the draft; None = nobody drafts.
        num_drafts: per pass; None = auto.
        acceptance: the chance that dice accept a draft; None = drafts are verified.
    """

    concurrency: int
    longest: int
    draft: str | None = None
    num_drafts: int | None = 0
    acceptance: float | None = None

    @property
    def name(self) -> str:
        """Name it by its number of drafts, as `--speculation` says it."""
        if self.draft is None:
            return "off"
        return "auto" if self.num_drafts is None else f"k={self.num_drafts}"


def make_engine(workshop: Workshop, plan: Plan, target: str | None = None) -> EngineCore:
    """Make an engine with the KV cache that its requests need, and no more.

    Args:
        workshop: has the models.
        plan: what it is for.
        target: shape of the target; None = the workshop's.
    """
    models = models_of(workshop, plan, target)
    is_drafted = plan.draft is not None
    config = EngineConfig(
        model=ModelConfig(max_model_len=plan.longest),
        cache=CacheConfig(
            block_size=_BLOCK_SIZE,
            kv_cache_memory=str(cache_bytes(models, plan)),
            prefix_caching=False,
        ),
        scheduler=SchedulerConfig(
            max_num_seqs=plan.concurrency, max_num_batched_tokens=MAX_BATCHED_TOKENS
        ),
        speculation=SpeculationConfig(
            draft="random weights" if is_drafted else None,
            max_draft_tokens=plan.num_drafts if is_drafted else 0,
            synthetic_acceptance=None if plan.acceptance is None else str(plan.acceptance),
        ),
    )
    return EngineCore(config, ModelPair(models[0], models[1] if is_drafted else None))


def models_of(workshop: Workshop, plan: Plan, target: str | None = None) -> list[LoadedModel]:
    """Give the models that an engine needs, the target first."""
    shapes = [target or workshop.sizes.target, *([plan.draft] if plan.draft is not None else [])]
    return [workshop.model(shape) for shape in shapes]


def cache_bytes(models: Sequence[LoadedModel], plan: Plan) -> int:
    """Give the size of the KV cache that all requests of a plan need at their longest."""
    blocks = (-(-plan.longest // _BLOCK_SIZE) + 1) * plan.concurrency + 1
    return blocks * sum(bytes_per_block(m.layers, _BLOCK_SIZE, m.dtype) for m in models)


def random_prompt(num_tokens: int, vocab_size: int, seed: int) -> list[int]:
    """Give random tokens, the same for the same seed."""
    return random.Random(seed).choices(range(3, vocab_size), k=num_tokens)


def submit(core: EngineCore, request_id: str, prompt: list[int], max_tokens: int) -> str:
    """Give an engine a greedy request that ends by its length alone; returns its full id."""
    seed = zlib.crc32(request_id.encode())
    params = SamplingParams(temperature=0.0, seed=seed, max_tokens=max_tokens, ignore_eos=True)
    request = make_requests(prompt, params, request_id=request_id, info=core.info)[0]
    core.add_request(request)
    return request.request_id


@dataclass(slots=True)
class SteadyLoad:
    """An engine with so many requests in flight at all times.

    Attributes:
        core: the engine.
        device: where it works.
        concurrency: requests in flight.
        prompt: tokens of a prompt.
        answer: tokens of an answer on average.
        rates: tokens per second of each window.
        stats: of all windows.
    """

    core: EngineCore
    device: torch.device
    concurrency: int
    prompt: int
    answer: int
    rates: list[float] = field(default_factory=list)
    stats: SpeculationStats = field(default_factory=SpeculationStats)
    _in_flight: set[str] = field(default_factory=set)
    _number: int = 0

    @property
    def rate(self) -> float:
        """The median of the windows, in tokens per second."""
        return statistics.median(self.rates)

    @property
    def spread(self) -> tuple[float, float]:
        """The slowest and the fastest window, in tokens per second."""
        return min(self.rates), max(self.rates)

    def warm_up(self, num_tokens: int) -> None:
        """Fill the engine, and let it write so many tokens for each request in flight."""
        written = 0
        while written < num_tokens * self.concurrency:
            written += self.step(SpeculationStats())

    def window(self, seconds: float) -> None:
        """Measure one window of about so many seconds."""
        synchronize(self.device)
        written, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            written += self.step(self.stats)
        synchronize(self.device)
        self.rates.append(written / (time.perf_counter() - started))

    def finish(self) -> None:
        """Drop what is in flight."""
        self.core.abort(list(self._in_flight))
        self._in_flight.clear()
        self.core.step()

    def step(self, stats: SpeculationStats) -> int:
        """Keep the engine full and make one step of it; returns the tokens written."""
        while len(self._in_flight) < self.concurrency:
            self._in_flight.add(self._submit(self._number))
            self._number += 1
        written = 0
        for delta in self.core.step():
            written += len(delta.new_token_ids)
            delta.observe(stats, len(delta.new_token_ids))
            if delta.finish_reason is not None:
                self._in_flight.discard(delta.request_id)
        return written

    def _submit(self, number: int) -> str:
        length = random.Random(number).randint(self.answer // 2, self.answer * 3 // 2)
        if number < self.concurrency:
            length = 1 + length * number // self.concurrency
        prompt = random_prompt(self.prompt, self.core.info.vocab_size, number)
        return submit(self.core, f"request-{number}", prompt, length)


def steady_load(workshop: Workshop, core: EngineCore, concurrency: int) -> SteadyLoad:
    """Put an engine under the workshop's load, and warm it up."""
    sizes = workshop.sizes
    load = SteadyLoad(core, workshop.device, concurrency, sizes.prompt, sizes.answer)
    load.warm_up(min(_WARM_UP_TOKENS, sizes.answer // 2))
    return load


def in_turn(loads: Sequence[SteadyLoad], workshop: Workshop) -> None:
    """Measure windows of several engines in turn, as often as the sizes say, and end the loads."""
    for _ in range(workshop.sizes.windows):
        for load in loads:
            load.window(workshop.sizes.window_s)
    for load in loads:
        load.finish()
