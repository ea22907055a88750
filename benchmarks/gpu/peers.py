"""What transformers itself does with the same shapes on the same device.

Its models are made anew with random weights, because ours may lie in memory in another way. Where
it has several ways, the fastest counts; one that cannot run is told in the details.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from benchmarks.gpu.device_times import synchronize
from benchmarks.gpu.engines import Plan, make_engine, random_prompt, submit
from benchmarks.gpu.kernel_times import each
from benchmarks.gpu.part import Notes
from benchmarks.gpu.workshop import Workshop, free_memory

BATCHING_BAR = 2.0
NUM_DRAFTS = 4
_BATCHES = (1, 8)
_BATCHING_WAYS: dict[str, dict[str, Any]] = {
    "as it chooses": {},
    "with CUDA graphs": {"use_cuda_graph": True, "use_async_batching": True},
}
_WARM_UP_TOKENS = 4
_OWN_WARM_UP_TOKENS = 16
_RESULT_TIMEOUT_S = 20
_NO_TOKEN = -1


def run(workshop: Workshop, notes: Notes) -> None:
    """Measure continuous batching, `generate`, and assisted generation."""
    sizes = workshop.sizes
    peer = _peer(workshop, sizes.target)
    cases: list[tuple[str, Callable[[], None]]] = [
        (f"{streams} streams", partial(_compare_batching, workshop, notes, peer, streams))
        for streams in sizes.peer_streams
    ]
    cases += [
        (f"generate, batch {batch}", partial(_compare_generate, workshop, notes, peer, batch))
        for batch in _BATCHES
    ]
    cases.append(("assisted generation", partial(_compare_assisted, workshop, notes, peer)))
    try:
        each(notes, cases)
    finally:
        del peer, cases
        free_memory()


def run_compiled(workshop: Workshop, notes: Notes) -> None:
    """Measure `generate` at batch 1 with a static cache, which transformers compiles."""
    peer = _peer(workshop, workshop.sizes.target)
    _compare_generate(workshop, notes, peer, 1, cache_implementation="static")
    del peer
    free_memory()


def _peer(workshop: Workshop, shape: str) -> Any:
    config = copy.deepcopy(workshop.model(shape).config)
    with workshop.device:
        model = AutoModelForCausalLM.from_config(
            config, dtype=workshop.dtype, attn_implementation="sdpa"
        )
    return model.eval().requires_grad_(False)


def _compare_batching(workshop: Workshop, notes: Notes, peer: Any, streams: int) -> None:
    """Compare continuous batching of requests that come at once, until the last has ended."""
    num_tokens = workshop.sizes.peer_tokens
    own = _ours(workshop, Plan(concurrency=streams, longest=workshop.sizes.longest), num_tokens)
    rates = {}
    for name, options in _BATCHING_WAYS.items():
        try:
            rates[name] = _batched(workshop, peer, streams, num_tokens, options)
        except Exception as error:
            notes.detail("did_not_run", way=name, streams=streams, error=repr(error))
        free_memory()
    best = max(rates, key=lambda name: rates[name])
    notes.detail("batching", streams=streams, ours=own, transformers=rates)
    notes.add(f"ours, {streams} requests at once", own, "tokens/s")
    notes.add(f"transformers' continuous batching, {streams} ({best})", rates[best], "tokens/s")
    notes.add(f"ours over it, {streams}", own / rates[best], bar=BATCHING_BAR)


def _compare_generate(
    workshop: Workshop, notes: Notes, peer: Any, batch: int, **options: Any
) -> None:
    sizes = workshop.sizes
    plan = Plan(concurrency=batch, longest=sizes.longest)
    own = _ours(workshop, plan, sizes.peer_tokens)
    for num_tokens in (sizes.peer_tokens // 4, sizes.peer_tokens):  # the first warms up
        synchronize(workshop.device)
        started = time.perf_counter()
        written = _generate(workshop, peer, batch, num_tokens, options)
        synchronize(workshop.device)
        rate = written / (time.perf_counter() - started)
    way = ", static cache, compiled" if options else ""
    notes.add(f"transformers' generate, batch {batch}{way}", rate, "tokens/s")
    notes.add(f"ours over it, batch {batch}{way}", own / rate)


def _compare_assisted(workshop: Workshop, notes: Notes, peer: Any) -> None:
    """Compare passes per second where no draft is accepted, as it is with random weights."""
    sizes = workshop.sizes
    plan = Plan(
        concurrency=1,
        longest=sizes.longest,
        draft=sizes.drafts[1],
        num_drafts=NUM_DRAFTS,
        acceptance=0.0,
    )
    own = _ours(workshop, plan, sizes.peer_tokens)
    assistant = _peer(workshop, sizes.drafts[1])
    assistant.generation_config.num_assistant_tokens = NUM_DRAFTS
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    options = {"assistant_model": assistant}
    _generate(workshop, peer, 1, sizes.peer_tokens // 4, {}, options)
    num_passes = 0

    def count(*_: object) -> None:
        nonlocal num_passes
        num_passes += 1

    hook = peer.register_forward_hook(count)
    started = time.perf_counter()
    _generate(workshop, peer, 1, sizes.peer_tokens, {}, options)
    synchronize(workshop.device)
    rate = num_passes / (time.perf_counter() - started)
    hook.remove()
    notes.add(f"transformers' assisted generation, k={NUM_DRAFTS}", rate, "passes/s")
    notes.add("ours over it, passes of as many drafts", own / rate)


def _ours(workshop: Workshop, plan: Plan, num_tokens: int) -> float:
    """Give tokens per second of requests that come at once, until the last has ended."""
    core = make_engine(workshop, plan)
    rate = 0.0
    # Batches of every size are seen twice before it counts, as graphs are recorded then.
    for turn, count in enumerate((_OWN_WARM_UP_TOKENS, _OWN_WARM_UP_TOKENS, num_tokens)):
        prompts = _prompts(workshop, plan.concurrency, seed=turn * plan.concurrency)
        synchronize(workshop.device)
        written, started = 0, time.perf_counter()
        for number, prompt in enumerate(prompts):
            submit(core, f"request-{turn}-{number}", prompt, count)
        while core.has_unfinished:
            written += sum(len(delta.new_token_ids) for delta in core.step())
        synchronize(workshop.device)
        rate = written / (time.perf_counter() - started)
    del core
    free_memory()
    return rate


def _prompts(workshop: Workshop, count: int, seed: int = 0) -> list[list[int]]:
    sizes = workshop.sizes
    return [random_prompt(sizes.prompt, sizes.vocab, seed + n) for n in range(count)]


def _settings(num_tokens: int, options: dict[str, Any]) -> GenerationConfig:
    """Give settings of greedy answers that end by their length alone."""
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=num_tokens,
        eos_token_id=_NO_TOKEN,
        pad_token_id=0,
        **options,
    )


@torch.inference_mode()
def _generate(
    workshop: Workshop,
    peer: Any,
    batch: int,
    num_tokens: int,
    options: dict[str, Any],
    keywords: dict[str, Any] | None = None,
) -> int:
    """Generate; returns the number of tokens."""
    ids = torch.tensor(_prompts(workshop, batch), device=workshop.device)
    output = peer.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        generation_config=_settings(num_tokens, options),
        **(keywords or {}),
    )
    return batch * int(output.shape[1] - ids.shape[1])


def _batched(
    workshop: Workshop, peer: Any, streams: int, num_tokens: int, options: dict[str, Any]
) -> float:
    """Give tokens per second of transformers' continuous batching, warmed up."""
    manager_of = peer.continuous_batching_context_manager(
        generation_config=_settings(num_tokens, {}),
        continuous_batching_config=ContinuousBatchingConfig(
            max_requests_per_batch=streams, allow_block_sharing=False, **options
        ),
        timeout=_RESULT_TIMEOUT_S,
    )
    with manager_of as manager:
        _drain(manager, _prompts(workshop, streams, seed=streams), _WARM_UP_TOKENS)
        started = time.perf_counter()
        written = _drain(manager, _prompts(workshop, streams), num_tokens)
        return written / (time.perf_counter() - started)


def _drain(manager: Any, prompts: Sequence[list[int]], num_tokens: int) -> int:
    """Give it prompts and wait for all; returns the number of tokens.

    Raises:
        RuntimeError: an answer failed, or none came.
    """
    manager.add_requests(inputs=list(prompts), max_new_tokens=num_tokens)
    written = num_finished = 0
    while num_finished < len(prompts):
        result = manager.get_result(timeout=_RESULT_TIMEOUT_S)
        if result is None or result.error is not None:
            raise RuntimeError(f"continuous batching: {'no answer' if result is None else result}")
        if result.is_finished():
            num_finished += 1
            written += len(result.generated_tokens)
    return written
