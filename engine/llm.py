"""Offline generation: prompts in, answers out, in this process.

The same engine, door and detokeniser as the server's, driven inline; no server package is needed.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.config import EngineConfig
from engine.config_files import apply_options, resolve
from engine.door import ModelInfo, make_requests
from engine.errors import InvalidRequestError
from engine.outputs import CompletionOutput, RequestOutput
from engine.prompts import PromptTokenizer
from engine.request import (
    FinishReason,
    Request,
    RequestDelta,
    SpeculationStats,
    TokenLogprobs,
)
from engine.sampling_params import SamplingParams
from engine.token_bytes import TokenBytes
from engine.tokenization import IncrementalDetokenizer, Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from engine.core import EngineCore

logger = logging.getLogger(__name__)

Prompt = str | Sequence[int]
Progress = Callable[["RunStats"], None]


@dataclass(slots=True)
class RunStats:
    """What one `generate` call did.

    Attributes:
        generation_seconds: wall time, loading left out.
        num_requests: answers wanted.
        num_finished: answers done.
        num_output_tokens: answer tokens; those after a stop text are not counted.
        num_steps: engine steps.
        draft_seconds: time spent proposing.
        target_seconds: time spent in target passes, sampling included.
        overhead_seconds: time of steps spent on anything else.
        controller_seconds: of the overhead, on deciding who drafts how much.
        speculation: counts over all answers; `num_target_passes` counts each answer's own passes.
        synthetic_acceptance: see `engine.door.ModelInfo`.
    """

    generation_seconds: float = 0.0
    num_requests: int = 0
    num_finished: int = 0
    num_output_tokens: int = 0
    num_steps: int = 0
    draft_seconds: float = 0.0
    target_seconds: float = 0.0
    overhead_seconds: float = 0.0
    controller_seconds: float = 0.0
    speculation: SpeculationStats = field(default_factory=SpeculationStats)
    synthetic_acceptance: tuple[float, ...] = ()

    def add(self, other: RunStats) -> None:
        """Add another run's counts to these."""
        self.generation_seconds += other.generation_seconds
        self.num_requests += other.num_requests
        self.num_finished += other.num_finished
        self.num_output_tokens += other.num_output_tokens
        self.num_steps += other.num_steps
        self.draft_seconds += other.draft_seconds
        self.target_seconds += other.target_seconds
        self.overhead_seconds += other.overhead_seconds
        self.controller_seconds += other.controller_seconds
        self.speculation.add(other.speculation)

    @property
    def tokens_per_second(self) -> float:
        """Answer tokens over wall time."""
        seconds = self.generation_seconds
        return self.num_output_tokens / seconds if seconds else 0.0


class LLM:
    """A target model with an optional draft, ready to generate.

    Args:
        model: hub id or local folder; None is the embedded demo pair.
        draft: draft model of the same vocabulary.
        speculation: draft tokens per pass; 0 or "off" is plain decoding; None lets measured
            costs and chances decide.
        config: settings to start from; the other arguments win over it.
        options: any field of `engine/config.py` by name, e.g. `dtype`, `max_num_seqs`, `threads`.

    Raises:
        ConfigError: an unknown option or a value that cannot be honoured.
        ModelLoadError: a model cannot be loaded or served.
    """

    def __init__(
        self,
        model: str | None = None,
        draft: str | None = None,
        *,
        speculation: int | str | None = None,
        config: EngineConfig | None = None,
        **options: Any,
    ) -> None:
        named = {"model": model, "draft": draft, "speculation": speculation}
        options |= {name: value for name, value in named.items() if value is not None}
        self.config = resolve(apply_options(config or EngineConfig(), options))
        # Imported here because it takes seconds, which settings that are wrong need not wait for.
        from engine.core import EngineCore

        self.core = EngineCore(self.config)
        settings = self.config.model
        assert settings.model is not None, "resolve() names a model"
        self.tokenizer: Tokenizer | None = load_tokenizer(
            settings.model, settings.revision, settings.trust_remote_code
        )
        self.prompt_tokenizer = PromptTokenizer(settings.model, self.tokenizer)
        self._tokens = None if self.tokenizer is None else TokenBytes(self.tokenizer)
        self.last_run = RunStats()
        self._ids = itertools.count()

    @property
    def info(self) -> ModelInfo:
        """What the engine says of its models and limits."""
        return self.core.info

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        on_progress: Progress | None = None,
    ) -> list[RequestOutput]:
        """Generate answers to prompts, batched as the engine sees fit.

        Args:
            prompts: texts or token id lists; one prompt may be given alone.
            params: sampling settings for all, or one per prompt.
            on_progress: called after each step with the counts so far.

        Returns:
            One output per prompt, in order.

        Raises:
            InvalidRequestError: a prompt or its settings cannot be served; nothing was generated.
        """
        batch = _as_batch(prompts)
        settings = _as_params(params, len(batch))
        jobs = [self._job(i, p, s) for i, (p, s) in enumerate(zip(batch, settings, strict=True))]
        return self._run(jobs, on_progress)

    def chat(
        self, messages: Sequence[dict[str, Any]], params: SamplingParams | None = None
    ) -> RequestOutput:
        """Answer one conversation, rendered with the tokenizer's own chat template.

        Raises:
            InvalidRequestError: there is no tokenizer or no template, or see `generate`.
        """
        return self.generate([self.render_chat(messages)], params)[0]

    def render_chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Turn a conversation into prompt tokens that end where the assistant speaks.

        Raises:
            InvalidRequestError: there is no tokenizer, or it has no chat template.
        """
        return self.prompt_tokenizer.render_chat(messages)

    def _job(self, index: int, prompt: Prompt, params: SamplingParams) -> _Job:
        text = prompt if isinstance(prompt, str) else None
        token_ids = (
            self.prompt_tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        )
        if params.stop and self.tokenizer is None:
            raise InvalidRequestError(
                "stop: stop texts need a tokenizer, and this model folder has none; "
                "use stop_token_ids.",
                param="stop",
            )
        requests = make_requests(
            token_ids, params, request_id=f"offline-{next(self._ids)}", info=self.core.info
        )
        seed = requests[0].params.seed
        assert seed is not None, "the door draws a seed"
        rates = self.info.synthetic_acceptance
        output = RequestOutput(index, text, token_ids, [], seed, synthetic_acceptance=rates)
        return _Job(output, [_Answer(r, self._detokenizer(r)) for r in requests])

    def _detokenizer(self, request: Request) -> IncrementalDetokenizer | None:
        if self._tokens is None:
            return None
        return IncrementalDetokenizer(self._tokens, request.params, request.prompt_token_ids)

    def _run(self, jobs: list[_Job], on_progress: Progress | None) -> list[RequestOutput]:
        answers = {a.request.request_id: a for job in jobs for a in job.answers}
        rates = self.info.synthetic_acceptance
        run = self.last_run = RunStats(num_requests=len(answers), synthetic_acceptance=rates)
        before = _seconds_of(self.core)
        num_steps = self.core.stats().num_steps
        started = time.perf_counter()
        try:
            for answer in answers.values():
                if not answer.request.is_finished:
                    self.core.add_request(answer.request)
            for deltas in self._steps():
                self._take(deltas, answers, run)
                run.generation_seconds = time.perf_counter() - started
                if on_progress is not None:
                    on_progress(run)
        finally:
            self.core.abort(answers)
        run.num_steps = self.core.stats().num_steps - num_steps
        spent = [after - began for after, began in zip(_seconds_of(self.core), before, strict=True)]
        run.draft_seconds, run.target_seconds, run.overhead_seconds, run.controller_seconds = spent
        outputs = [job.finish() for job in jobs]
        for answer in answers.values():
            run.speculation.add(answer.output.stats)
        run.num_output_tokens = sum(output.num_output_tokens for output in outputs)
        run.generation_seconds = time.perf_counter() - started
        return outputs

    def _steps(self) -> Iterator[list[RequestDelta]]:
        while self.core.has_unfinished:
            yield self.core.step()

    def _take(self, deltas: list[RequestDelta], answers: dict[str, _Answer], run: RunStats) -> None:
        # What an earlier run left behind when it was interrupted is not for this one.
        deltas = [delta for delta in deltas if delta.request_id in answers]
        stopped = [delta.request_id for delta in deltas if answers[delta.request_id].take(delta)]
        self.core.abort(stopped)
        run.num_output_tokens += sum(len(delta.new_token_ids) for delta in deltas)
        run.num_finished += len(stopped) + sum(d.finish_reason is not None for d in deltas)


@dataclass(slots=True)
class _Answer:
    """One choice while it is generated."""

    request: Request
    detokenizer: IncrementalDetokenizer | None
    output: CompletionOutput = field(init=False)
    num_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs] | None = None

    def __post_init__(self) -> None:
        self.output = CompletionOutput(self.request.choice_index)
        if self.request.is_finished:
            self.output.finish_reason = self.request.finish_reason

    def take(self, delta: RequestDelta) -> bool:
        """Add a step's tokens; True when a stop text ended the answer before the engine did."""
        output = self.output
        if output.finish_reason is not None:
            return False
        output.token_ids += delta.new_token_ids
        if delta.logprobs is not None:
            output.logprobs = (output.logprobs or []) + delta.logprobs
        self.num_cached_tokens = delta.num_cached_tokens
        output.finish_reason, output.stop_reason = delta.finish_reason, delta.stop_reason
        output.error = delta.error
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = (self.prompt_logprobs or []) + delta.prompt_logprobs
        text = self.detokenizer
        if text is None:
            delta.observe(output.stats, len(delta.new_token_ids))
            return False
        first = text.num_tokens
        text.add(
            delta.new_token_ids,
            is_last=delta.finish_reason is not None,
            ends_with_stop_token=delta.finish_reason is FinishReason.STOP,
        )
        delta.observe(output.stats, text.num_tokens - first)
        return self._stop_at_text(text)

    def _stop_at_text(self, detokenizer: IncrementalDetokenizer) -> bool:
        if detokenizer.stopped_by is None:
            return False
        output = self.output
        had_ended = output.finish_reason is not None
        output.finish_reason, output.stop_reason = FinishReason.STOP, detokenizer.stopped_by
        count = detokenizer.num_tokens_until_stop
        output.token_ids = output.token_ids[:count]
        if output.logprobs is not None:
            output.logprobs = output.logprobs[:count]
        return not had_ended


@dataclass(slots=True)
class _Job:
    """One prompt and its choices while they are generated."""

    output: RequestOutput
    answers: list[_Answer]

    def finish(self) -> RequestOutput:
        """Put the choices together."""
        for answer in self.answers:
            if answer.detokenizer is not None:
                answer.output.text = answer.detokenizer.text
            self.output.outputs.append(answer.output)
            self.output.num_cached_tokens += answer.num_cached_tokens
            if answer.prompt_logprobs is not None:
                self.output.prompt_logprobs = answer.prompt_logprobs
        return self.output


def _seconds_of(core: EngineCore) -> tuple[float, float, float, float]:
    """Give what steps took so far: drafting, the target, the rest, and of it the controller."""
    s = core.stats()
    return s.draft_seconds, s.target_seconds, s.overhead_seconds, s.controller_seconds


def _as_batch(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    items: list[Any] = list(prompts)
    if items and all(isinstance(item, int) for item in items):
        return [items]
    return items


def _as_params(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise InvalidRequestError(
            f"params: {len(params)} sampling settings for {count} prompts; give one or {count}.",
            param="params",
        )
    return list(params)
