"""Times plain decoding of requests that stand at a given context, on an engine in this process.

Prompts are random tokens. Those of a shorter context begin like those of a longer one, so that the
prefix cache fills every context once and rounds cost little more than the steps that they time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from benchmarks.method_timer import Place, timed
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.door import make_requests
from engine.errors import ContextLengthExceededError
from engine.kv_cache.storage import bytes_per_block
from engine.model_pair import ModelPair
from engine.request import Request, RequestDelta
from engine.runner import model_runner
from engine.runner.input_batch import InputBatch
from engine.sampling.sampler import Sampler
from engine.sampling_params import SamplingParams
from engine.scheduler import Scheduler
from engine.tokenization import IncrementalDetokenizer, TokenBytes

FORWARD = "forward"
PLACES: dict[str, Place] = {
    FORWARD: (model_runner, "forward_packed"),
    "schedule": (Scheduler, "schedule"),
    "inputs": (InputBatch, "build"),
    "sample": (Sampler, "sample"),
    "update": (Scheduler, "update"),
}
_WARM_UP_STEPS = 3
_MS = 1000.0


@dataclass(slots=True, kw_only=True)
class Steps:
    """Decode steps that were timed, all lists by step.

    Attributes:
        context: tokens that a request had on average.
        step_s: of the engine.
        forward_s: of these, in the models.
        detokenize_s: behind the step, turning its tokens into text; 0 without a tokenizer.
        parts_s: of all steps together, by part of the step.
    """

    context: float = 0.0
    step_s: list[float] = field(default_factory=list)
    forward_s: list[float] = field(default_factory=list)
    detokenize_s: list[float] = field(default_factory=list)
    parts_s: dict[str, float] = field(default_factory=dict)

    @property
    def step_ms(self) -> float:
        """A step; the median, as all that follow."""
        return median(self.step_s) * _MS

    @property
    def host_ms(self) -> float:
        """What of a step was not the model's forward pass; detokenizing is not in it."""
        return median(s - f for s, f in zip(self.step_s, self.forward_s, strict=True)) * _MS

    @property
    def host_share(self) -> float:
        """Everything but the forward pass, of a step and the detokenizing of its tokens."""
        columns = zip(self.step_s, self.forward_s, self.detokenize_s, strict=True)
        return median(1 - forward / (step + text) for step, forward, text in columns)

    def part_ms(self, name: str) -> float:
        """A part of a step, on average."""
        return self.parts_s[name] / len(self.step_s) * _MS


class DecodeBench:
    """An engine without drafts, big enough for so many requests of some context.

    Args:
        config: settings to start from.
        models: the target; a draft is left out.
        concurrency: requests at once at most.
        contexts: tokens of a prompt that will be asked for.
        num_steps: to be timed at a time.
        tokens: the tokenizer's; None = tokens are not turned into text.

    Raises:
        ContextLengthExceededError: the model has no room for these contexts.
    """

    def __init__(
        self,
        config: EngineConfig,
        models: ModelPair,
        *,
        concurrency: int,
        contexts: Sequence[int],
        num_steps: int,
        tokens: TokenBytes | None = None,
    ) -> None:
        margin = margin_tokens(config, concurrency, max(contexts), num_steps)
        _check_room(models, max(contexts) + margin)
        own = _config_for(config, models, concurrency, contexts, margin)
        alone = ModelPair(models.target, load_tokenizer=models.load_tokenizer)
        self._core = EngineCore(own, alone)
        self._num_steps = num_steps
        self._tokens = tokens
        self._texts: dict[str, IncrementalDetokenizer] = {}
        self._num_asked = 0

    def measure(self, concurrency: int, context: int, temperature: float = 0.0) -> Steps:
        """Time decode steps of so many requests, behind prompts of `context` tokens."""
        params = SamplingParams(temperature=temperature, seed=0, ignore_eos=True, max_tokens=None)
        requests = [self._request(place, context, params) for place in range(concurrency)]
        for request in requests:
            self._core.add_request(request)
        while not all(request.num_output_tokens for request in requests):
            self._read(self._core.step())
        for _ in range(_WARM_UP_STEPS):
            self._read(self._core.step())
        steps = Steps()
        with timed(PLACES) as seconds:
            for _ in range(self._num_steps):
                self._step(steps, seconds)
        assert not any(request.is_finished for request in requests), "every step decoded all"
        steps.parts_s = dict(seconds)
        num_tokens = sum(request.num_tokens for request in requests)
        steps.context = num_tokens / concurrency - self._num_steps / 2
        self._core.abort([request.request_id for request in requests])
        self._core.step()
        self._texts.clear()
        return steps

    def _step(self, steps: Steps, seconds: dict[str, float]) -> None:
        before, began = seconds[FORWARD], time.perf_counter()
        deltas = self._core.step()
        ended = time.perf_counter()
        self._read(deltas)
        read = time.perf_counter()
        steps.step_s.append(ended - began)
        steps.forward_s.append(seconds[FORWARD] - before)
        steps.detokenize_s.append(read - ended)

    def _read(self, deltas: list[RequestDelta]) -> None:
        """Turn tokens into text one at a time, as a server does for its streams."""
        for delta in deltas:
            text = self._texts.get(delta.request_id)
            if text is not None:
                for token_id in delta.new_token_ids:
                    text.add([token_id])

    def _request(self, place: int, context: int, params: SamplingParams) -> Request:
        info = self._core.info
        draw = random.Random(place)
        prompt = [draw.randrange(info.vocab_size) for _ in range(context)]
        self._num_asked += 1
        (request,) = make_requests(prompt, params, request_id=f"{self._num_asked}", info=info)
        if self._tokens is not None:
            text = IncrementalDetokenizer(self._tokens, params, prompt)
            self._texts[request.request_id] = text
        return request


def margin_tokens(config: EngineConfig, concurrency: int, context: int, num_steps: int) -> int:
    """Give the tokens by which requests may grow beyond their prompts until steps are timed."""
    # While others' prompts are computed, those that are done go on.
    passes = -(-concurrency * context // config.on_device("cpu").scheduler.step_tokens)
    return 2 * passes + concurrency // 8 + num_steps + 4 * _WARM_UP_STEPS


def _check_room(models: ModelPair, num_tokens: int) -> None:
    limit = models.target.max_model_len
    if num_tokens > limit:
        raise ContextLengthExceededError(
            f"contexts: with the steps behind them {num_tokens} tokens exceed the {limit} of "
            f"{models.target.name}; lower them, or --steps."
        )


def _config_for(
    config: EngineConfig,
    models: ModelPair,
    concurrency: int,
    contexts: Sequence[int],
    margin: int,
) -> EngineConfig:
    size = config.cache.block_size
    # Every context's answers stay in the prefix cache beside the longest prompts.
    num_tokens = max(contexts) + (margin + size) * len(contexts)
    num_blocks = (-(-num_tokens // size) + 1) * concurrency + 1
    target = models.target
    num_bytes = num_blocks * bytes_per_block(target.layers, size, target.dtype)
    cache = replace(config.cache, kv_cache_memory=str(num_bytes), prefix_caching=True)
    model = replace(config.model, max_model_len=max(contexts) + margin)
    scheduler = replace(config.scheduler, max_num_seqs=concurrency)
    speculation = replace(
        config.speculation, draft=None, max_draft_tokens=0, synthetic_acceptance=None
    )
    return replace(config, cache=cache, model=model, scheduler=scheduler, speculation=speculation)
