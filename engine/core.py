"""The engine's loop: schedule, propose, execute, verify, update.

It owns the models, the KV cache and every request in flight; it refuses to know of text, of HTTP,
and of which process it runs in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch

from engine.config import EngineConfig
from engine.door import ModelInfo
from engine.draft_warnings import warn_of_drafts
from engine.errors import ConfigError, InvalidRequestError, ModelLoadError
from engine.grammar_tokenizer import serialize
from engine.kv_cache.manager import KVCacheManager
from engine.memory_errors import OUT_OF_MEMORY, is_out_of_memory, release_memory
from engine.metrics import EngineStats
from engine.model.loader import LoadedModel
from engine.model_pair import ModelPair, load_pair
from engine.pass_origins import PassOrigins
from engine.request import Request, RequestDelta
from engine.runner.attention_setup import choose_attention
from engine.runner.decode_loop import DecodeLoop, Iteration
from engine.runner.loop_setup import decodes_ahead, make_decode_loop
from engine.runner.memory import num_kv_cache_blocks
from engine.runner.model_runner import ModelRunner
from engine.runner.prompt_logprobs import take_prompt_rows
from engine.runner.target_pass import collect_outcomes, target_spans
from engine.sampling.grammar_compiler import GrammarCompiler
from engine.sampling.grammar_masks import GrammarMasks
from engine.sampling.grammar_queue import GrammarQueue
from engine.sampling.sampler import Sampler
from engine.sampling.sampling_batch import Rows, SamplingBatch
from engine.scheduler import Scheduler
from engine.speculation import Speculation, draft_runner
from engine.speculative.proposer import Draft
from engine.startup_clock import StartupClock
from engine.step import ModelOutput, SchedulerOutput
from engine.step_ledger import StepClock, StepLedger
from engine.warm_up import warm_up_request

# While requests wait for their grammars and for nothing else, a step lasts this long at most.
_GRAMMAR_WAIT_S = 0.01


logger = logging.getLogger(__name__)


class EngineCore:
    """Generates tokens for many requests at once.

    Args:
        config: all settings.
        models: the models, already loaded; None loads what `config` names.

    Attributes:
        on_step: hears who is computed by each step that begins.

    Raises:
        ModelLoadError: a model cannot be loaded or served.
        ConfigError: a setting cannot be honoured with these models.
        OutOfMemoryError: the KV cache does not fit.
    """

    def __init__(self, config: EngineConfig, models: ModelPair | None = None) -> None:
        self.on_step: Callable[[set[str]], None] = lambda _request_ids: None
        clock = StartupClock()
        models = models or load_pair(config)
        clock.lap("models")
        self._target = models.target
        self.config = config = config.on_device(models.target.device.type)
        self.max_model_len = _max_model_len(config, models.target)
        loaded = [models.target] if models.draft is None else [models.target, models.draft]
        self.attention_backends = choose_attention(config, loaded, self.max_model_len)
        num_blocks = num_kv_cache_blocks(config, loaded, max_model_len=self.max_model_len)
        self.kv = KVCacheManager(
            num_blocks, config.cache.block_size, prefix_caching=config.cache.prefix_caching
        )
        self._grammars = GrammarMasks()
        self._compiler = _make_compiler(models)
        self._grammar_queue = GrammarQueue(self._compiler)
        self._sampler = Sampler(models.target.vocab_size, models.target.device, self._grammars)
        self._runner = ModelRunner(
            models.target,
            num_blocks,
            config.cache.block_size,
            config.scheduler.step_tokens,
        )
        draft = draft_runner(config, models, self._runner)
        self._loop = self._make_loop(models, draft)
        self._under_way: Iteration | None = None
        clock.lap("kv_cache")
        self._speculation = Speculation(
            config,
            models,
            self._runner,
            draft,
            self._sampler,
            self._grammars.forced_tokens,
            self._loop,
        )
        clock.lap("step_costs")
        self._origins = PassOrigins(self._speculation.survival, self._grammars)
        self.scheduler = Scheduler(
            config.scheduler,
            self.kv,
            planner=self._speculation.planner,
            draft_follows=self._speculation.draft_follows,
            max_model_len=self.max_model_len,
            draft_max_len=self._speculation.draft_max_len,
            on_start=lambda request_ids: self.on_step(request_ids),
            can_join=self._loop.can_join if self._loop is not None else lambda _request: True,
        )
        if (costs := self._speculation.costs) is not None:
            self.scheduler.background.expect(lambda count: costs.target_pass(count, count, 1.0))
        self._stats = EngineStats()
        self._ledger = StepLedger(self._stats)
        self._warnings = warn_of_drafts(config, models, self.max_model_len, costs)
        logger.info("core_made %s", clock)

    @property
    def info(self) -> ModelInfo:
        """What the door has to know of the models."""
        return ModelInfo(
            model_name=self._target.name,
            max_model_len=self.max_model_len,
            vocab_size=self._target.vocab_size,
            eos_token_ids=frozenset(self._target.eos_token_ids),
            has_draft=self._speculation.has_draft,
            num_draft_tokens=self.config.speculation.num_draft_tokens,
            num_blocks=self.kv.num_blocks,
            block_size=self.config.cache.block_size,
            warnings=self._warnings,
            synthetic_acceptance=self.config.speculation.acceptance_rates,
            attention_backends=self.attention_backends,
        )

    def add_request(self, request: Request) -> None:
        """Put a request, checked at the door, into the queue.

        Raises:
            InvalidRequestError: a living request has the same id.
        """
        if (
            request.request_id in self._grammar_queue
            or request.request_id in self.scheduler.requests
        ):
            raise InvalidRequestError(
                f"request_id: {request.request_id!r} is in use; give each request its own.",
                param="request_id",
            )
        self._stats.num_prompt_tokens += request.num_prompt_tokens
        self._origins.watch(request)
        if request.params.structured_output is None:
            self.scheduler.add(request)
        else:
            self._grammar_queue.hold(request)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forget requests and free their blocks; unknown ids are ignored."""
        for request_id in request_ids:
            held = self._grammar_queue.drop(request_id)
            if held is not None:
                self.scheduler.add(held)
            self.scheduler.abort(request_id)
            self._forget([request_id])
            self._ledger.forget([request_id])

    @property
    def has_unfinished(self) -> bool:
        """Whether a step would do anything."""
        return self.scheduler.has_unfinished or len(self._grammar_queue) > 0

    @torch.inference_mode()
    def step(self) -> list[RequestDelta]:
        """Advance every scheduled request by one pass.

        Returns:
            What the step added to each request that has something new.
        """
        self._release_grammars()
        clock = StepClock()
        ahead = self._under_way
        scheduled = self.scheduler.schedule() if ahead is None else ahead.scheduled
        if not scheduled.scheduled:
            return self._update(scheduled, ModelOutput([]))
        try:
            ahead = ahead or self._launch(scheduled)
            if ahead is not None:
                output = self._collect(ahead, clock)
            else:
                sampling = self._sampling_batch(scheduled)
                clock.start_draft()
                draft = self._speculation.proposer.propose(scheduled, sampling)
                clock.start_target()
                rows = Rows.ragged(_num_drafts(scheduled, draft))
                self._sampler.begin(sampling, rows, draft.token_ids)
                logits = self._runner.execute(target_spans(scheduled, draft))
                output = self._verify(logits, rows, scheduled, sampling, draft)
                clock.end_target()
            self._speculation.observe(scheduled, output, clock.draft_seconds, clock.target_seconds)
        except (MemoryError, RuntimeError) as error:
            return self._shed(error)
        # What is booked cannot be taken back, so whatever is raised from here on ends the engine.
        deltas = self._update(scheduled, output)
        self.scheduler.background.observe(scheduled, output, clock.seconds)
        self._ledger.book(scheduled, output, deltas, clock, self._speculation.take_planning())
        self._speculation.observe_host(scheduled, output, clock.overhead_seconds)
        return deltas

    def _launch(self, scheduled: SchedulerOutput) -> Iteration | None:
        """Hand a step to the decode loop; None where there is none, or it does not take it."""
        if self._loop is None:
            return None
        self._loop.evict(request.request_id for request in scheduled.preempted)
        return self._loop.launch(scheduled) if self._loop.takes(scheduled) else None

    def _collect(self, ahead: Iteration, clock: StepClock) -> ModelOutput:
        """Give what came of a step that was launched, after launching the one behind it."""
        assert self._loop is not None, "only a loop launches"
        following = self.scheduler.schedule_ahead(ahead.scheduled)
        self._under_way = None if following is None else self._loop.launch(following)
        output = self._loop.collect(ahead)
        clock.take(*self._loop.seconds(ahead))
        self._origins.note(ahead.scheduled, output)
        return output

    def _shed(self, error: MemoryError | RuntimeError) -> list[RequestDelta]:
        """Go on behind a step that did not fit into memory, with less of it."""
        if not is_out_of_memory(error):
            raise error
        logger.warning("step_out_of_memory error=%s", type(error).__name__)
        release_memory(error, self._target.device)
        was_ahead, self._under_way = self._under_way is not None, None
        if self._loop is not None:
            self._loop.evict(list(self.scheduler.requests))
        self.scheduler.shed(OUT_OF_MEMORY, was_ahead=was_ahead)
        deltas = self._update(SchedulerOutput(), ModelOutput([]))
        self._ledger.forget(delta.request_id for delta in deltas)
        return deltas

    def warm_up(self) -> None:
        """Run a request of our own to its end, so that whoever is told of us finds us working.

        Raises:
            ModelLoadError: its answer ended with an error.
        """
        self.add_request(warm_up_request(self.max_model_len))
        deltas: list[RequestDelta] = []
        while self.has_unfinished:
            deltas += self.step()
        error = next((delta.error for delta in deltas if delta.error is not None), None)
        if error is not None:
            raise ModelLoadError(f"{self._target.name} cannot be served: {error}")
        self._stats = EngineStats()
        self._ledger = StepLedger(self._stats)
        self.kv.num_prefix_query_tokens = self.kv.num_prefix_hit_tokens = 0

    def change_synthetic_acceptance(self, rates: Sequence[float]) -> None:
        """Let dice accept at other rates from the next step on, where they accept already.

        Raises:
            ConfigError: drafts are verified, or there are no rates.
        """
        synthetic = self._speculation.synthetic
        if synthetic is None or not rates:
            raise ConfigError(
                "synthetic_acceptance: rates can change where the engine started with some; "
                "give --synthetic-acceptance, and at least one rate."
            )
        synthetic.rates = rates
        if self._loop is not None:
            self._loop.change_rates(rates)

    def stats(self) -> EngineStats:
        """Take a snapshot of the engine's counters."""
        stats = self._stats
        stats.estimated_speedup = self._speculation.estimated_speedup
        stats.warnings = self._speculation.warnings
        stats.num_running = self.scheduler.num_running
        stats.num_waiting = self.scheduler.num_waiting + len(self._grammar_queue)
        background = self.scheduler.count_background()
        stats.num_background_running, stats.num_background_paused = background
        stats.num_background_waiting = self.scheduler.background.num_requests - sum(background)
        stats.num_background_waiting += self._grammar_queue.num_background
        stats.num_preemptions = self.scheduler.num_preemptions
        stats.num_shed_steps = self.scheduler.limit.num_shed
        stats.drafter_failures = self._speculation.drafter_failures
        stats.kv_cache_usage = self.kv.usage
        stats.num_prefix_query_tokens = self.kv.num_prefix_query_tokens
        stats.num_prefix_hit_tokens = self.kv.num_prefix_hit_tokens
        if self._loop is not None:
            stats.num_graphs = self._loop.graphs.num_graphs
            stats.graph_bytes = self._loop.graphs.num_bytes
        stats.grammar_compile_seconds = self._compiler.seconds
        stats.grammar_mask_seconds = self._grammars.mask_seconds
        stats.grammar_mask_wait_seconds = self._grammars.wait_seconds
        return stats

    def _release_grammars(self) -> None:
        """Let in the requests whose grammar is compiled; one that has none ends with an error."""
        wait_s = 0.0 if self.scheduler.has_unfinished else _GRAMMAR_WAIT_S
        for request, compiled in self._grammar_queue.release(wait_s):
            self.scheduler.add(request)
            if isinstance(compiled, str):
                self.scheduler.fail(request, compiled)
            else:
                self._grammars.admit(request, compiled)

    def _sampling_batch(self, scheduled: SchedulerOutput) -> SamplingBatch:
        sampling = [share for share in scheduled.scheduled if share.samples]
        return SamplingBatch.build(
            [share.request for share in sampling],
            [share.num_draft_tokens for share in sampling],
            vocab_size=self._target.vocab_size,
            device=self._target.device,
        )

    def _verify(
        self,
        logits: torch.Tensor,
        rows: Rows,
        scheduled: SchedulerOutput,
        sampling: SamplingBatch,
        draft: Draft,
    ) -> ModelOutput:
        logits, prompt_logprobs = take_prompt_rows(logits, scheduled, draft)
        sampled = self._sampler.sample(logits, sampling, rows, draft.token_ids)
        counts = _num_drafts(scheduled, draft)
        verification = self._speculation.verify(
            sampled.token_ids, draft.token_ids, counts, sampling.requests
        )
        output = collect_outcomes(scheduled, draft, sampled, verification, prompt_logprobs)
        for share, outcome in zip(scheduled.scheduled, output.outcomes, strict=True):
            self._grammars.settle(share.request, outcome)
        self._origins.note(scheduled, output)
        return output

    def _update(self, scheduled: SchedulerOutput, output: ModelOutput) -> list[RequestDelta]:
        deltas = self.scheduler.update(scheduled, output)
        ended = [delta.request_id for delta in deltas if delta.finish_reason is not None]
        if ended:
            self._forget(ended)
        return deltas

    def _make_loop(self, models: ModelPair, draft: ModelRunner | None) -> DecodeLoop | None:
        if not decodes_ahead(self.config, models.target.device):
            return None
        # Drafts of another vocabulary have the host between their passes.
        drafting = draft if models.foreign is None else None
        return make_decode_loop(
            self.config, self._runner, drafting, max_model_len=self.max_model_len
        )

    def _forget(self, request_ids: list[str]) -> None:
        self._sampler.evict(request_ids)
        if self._loop is not None:
            self._loop.evict(request_ids)
        self._speculation.evict(request_ids)
        self._origins.evict(request_ids)


def _num_drafts(scheduled: SchedulerOutput, draft: Draft) -> list[int]:
    """Give the drafts of each request that samples."""
    shares = zip(scheduled.scheduled, draft.num_draft_tokens, strict=True)
    return [num_drafts for share, num_drafts in shares if share.samples]


def _make_compiler(models: ModelPair) -> GrammarCompiler:
    target = models.target
    source = partial(serialize, models.load_tokenizer)
    return GrammarCompiler(source, target.vocab_size, target.eos_token_ids)


def _max_model_len(config: EngineConfig, target: LoadedModel) -> int:
    wanted = config.model.max_model_len
    if wanted is None:
        return target.max_model_len
    if wanted > target.max_model_len:
        raise ConfigError(
            f"max_model_len: {wanted} exceeds the {target.max_model_len} tokens that "
            f"{target.name} was made for."
        )
    return wanted
