"""Small stand-ins for the engine's core: they invent their tokens, or fail on purpose."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable

from engine.config import EngineConfig
from engine.door import ModelInfo
from engine.errors import ModelNotSupportedError
from engine.metrics import DrafterSeconds, EngineStats
from engine.provenance import PassProvenance
from engine.request import (
    DRAFT_MODEL,
    PREDICTION,
    FinishReason,
    PassReport,
    Request,
    RequestDelta,
    SpeculationStats,
    TokenLogprobs,
)

EOS = 256
VOCAB_SIZE = 258
MAX_MODEL_LEN = 128
BLOCK_SIZE = 16
# What `FakeCore` warns of at start, and while it serves.
WARNINGS = ("draft_hardly_used draft=fake", "draft_not_used draft=fake")
# What every pass of it is said to have taken.
REPORT = PassReport(0.001, 0.002, 0.0005, 1.5)

AnswerFn = Callable[[Request, int], int]


def echo_backwards(request: Request, position: int) -> int:
    """Answer with the prompt from its end, over and over."""
    prompt = request.prompt_token_ids
    return prompt[-1 - position % len(prompt)]


class FakeCore:
    """Behaves like `EngineCore` without a model: one pass per step, two tokens per pass.

    Args:
        config: ignored but for `max_model_len` and `synthetic_acceptance`.
        answer: gives the token at a place of a request's answer.
    """

    def __init__(
        self, config: EngineConfig | None = None, answer: AnswerFn = echo_backwards
    ) -> None:
        limit = config.model.max_model_len if config is not None else None
        self.info = ModelInfo(
            model_name="fake",
            max_model_len=limit or MAX_MODEL_LEN,
            vocab_size=VOCAB_SIZE,
            eos_token_ids=frozenset({EOS}),
            has_draft=True,
            num_draft_tokens=1,
            num_blocks=65,
            block_size=BLOCK_SIZE,
            warnings=WARNINGS[:1],
            synthetic_acceptance=() if config is None else config.speculation.acceptance_rates,
        )
        self._answer = answer
        self._requests: dict[str, Request] = {}
        self._stats = EngineStats(warnings=list(WARNINGS[1:]), num_graphs=3, graph_bytes=4096)
        self.aborted: list[str] = []
        self.on_step: Callable[[set[str]], None] = lambda _request_ids: None

    def warm_up(self) -> None:
        pass

    def add_request(self, request: Request) -> None:
        self._requests[request.request_id] = request
        self._stats.num_prompt_tokens += request.num_prompt_tokens
        self._stats.num_prefix_query_tokens += request.num_prompt_tokens

    def abort(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            if self._requests.pop(request_id, None) is not None:
                self.aborted.append(request_id)

    @property
    def has_unfinished(self) -> bool:
        return bool(self._requests)

    def step(self) -> list[RequestDelta]:
        self.on_step(set(self._requests))
        deltas = [self._advance(request) for request in self._requests.values()]
        self._requests = {i: r for i, r in self._requests.items() if not r.is_finished}
        return deltas

    def stats(self) -> EngineStats:
        num_blocks = sum(-(-r.num_tokens // BLOCK_SIZE) for r in self._requests.values())
        self._stats.num_running = len(self._requests)
        self._stats.kv_cache_usage = num_blocks / (self.info.num_blocks - 1)
        return self._stats

    def _advance(self, request: Request) -> RequestDelta:
        first = request.num_output_tokens
        prompt_logprobs = _prompt_logprobs(request)
        taken = request.append([self._answer(request, first + i) for i in range(2)])
        num_accepted = max(0, len(taken) - 1)
        if taken:
            self._stats.speculation.observe(1, num_accepted, len(taken), DRAFT_MODEL)
            self._stats.speculation.observe_report(REPORT)
            seconds = self._stats.drafter_seconds.setdefault(DRAFT_MODEL, DrafterSeconds())
            seconds.draft += REPORT.draft_seconds
            seconds.verify += REPORT.verify_seconds / 2
        is_predicted = bool(request.params.predicted_token_ids)
        return RequestDelta(
            request_id=request.request_id,
            new_token_ids=taken,
            logprobs=[_logprobs(t, request.params.logprobs) for t in taken]
            if request.params.logprobs is not None
            else None,
            finish_reason=request.finish_reason,
            stop_reason=request.stop_reason,
            num_cached_tokens=min(4, request.num_prompt_tokens - 1),
            scheduled_time=time.monotonic() if first == 0 and taken else None,
            num_draft_tokens=1 if taken else 0,
            num_accepted_tokens=num_accepted,
            drafter=PREDICTION if is_predicted else DRAFT_MODEL,
            report=REPORT,
            prompt_logprobs=prompt_logprobs,
            provenance=_provenance(request, taken),
        )


def _provenance(request: Request, taken: list[int]) -> PassProvenance | None:
    """Say that one draft was made, which was right unless the answer ended before it."""
    if not request.wants_provenance or not taken:
        return None
    return PassProvenance(0.0035, taken[:1], [0.75])


def _prompt_logprobs(request: Request) -> list[TokenLogprobs] | None:
    """Give a made-up entry per prompt token from the second on, once."""
    num_top = request.params.prompt_logprobs
    if num_top is None or not request.lacks_prompt_logprobs:
        return None
    entries = [_logprobs(token_id, num_top) for token_id in request.prompt_token_ids[1:]]
    request.num_prompt_logprobs = len(entries)
    return entries


def _logprobs(token_id: int, num_top: int) -> TokenLogprobs:
    top = [((token_id + i) % VOCAB_SIZE, -0.5 - i) for i in range(num_top)]
    return TokenLogprobs(logprob=-0.5, rank=1, top=top)


def count_speculation(deltas: Iterable[RequestDelta]) -> SpeculationStats:
    """Add up what one request's deltas say of speculation."""
    stats = SpeculationStats()
    for delta in deltas:
        delta.observe(stats, len(delta.new_token_ids))
    return stats


class SlowCore(FakeCore):
    """A core whose steps take 20 ms, so that tests can act in the middle of an answer."""

    def step(self) -> list[RequestDelta]:
        time.sleep(0.02)
        return super().step()


class UnloadableCore(FakeCore):
    """A core that cannot load its model."""

    def __init__(self, config: EngineConfig) -> None:
        raise ModelNotSupportedError("MambaForCausalLM has no attention to page.")


class BrokenCore(FakeCore):
    """A core that cannot load for a reason that nobody foresaw."""

    def __init__(self, config: EngineConfig) -> None:
        raise ZeroDivisionError("no reason at all")


class FailingCore(FakeCore):
    """A core whose third step raises."""

    num_steps = 0

    def step(self) -> list[RequestDelta]:
        self.num_steps += 1
        if self.num_steps == 3:
            raise RuntimeError("the third step went wrong")
        return super().step()


class HalfwayCore(FakeCore):
    """A core that takes a request in and then cannot go on with it, if its id begins with `bad`."""

    def add_request(self, request: Request) -> None:
        super().add_request(request)
        if request.request_id.startswith("bad"):
            raise KeyError("halfway in")

    def step(self) -> list[RequestDelta]:
        assert not any(name.startswith("bad") for name in self._requests), "nobody hears of it"
        return super().step()


class RefusingCore(FakeCore):
    """A core that ends requests of high priority numbers with an error."""

    def step(self) -> list[RequestDelta]:
        refused = [r for r in self._requests.values() if r.priority > 10]
        for request in refused:
            request.finish(FinishReason.ERROR)
            del self._requests[request.request_id]
        return super().step() + [
            RequestDelta(r.request_id, [], finish_reason=FinishReason.ERROR, error="too low")
            for r in refused
        ]


class DyingCore(FakeCore):
    """A core that kills its own process in the third step, as the kernel does out of memory."""

    num_steps = 0

    def step(self) -> list[RequestDelta]:
        self.num_steps += 1
        if self.num_steps == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step()
