"""A model and a draft made of arithmetic, that remember what lies in every slot of the KV cache.

The token at a position is a function of the request and the position. Every computed token
writes its prefix into its slot, and whoever reads a slot checks that it holds the right prefix:
a wrong hit, an early publication or a block handed out twice cannot go unnoticed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.config import SchedulerConfig
from engine.draft_planner import DraftPlanner, FixedPlanner
from engine.kv_cache.manager import KVCacheManager
from engine.request import Request, RequestDelta
from engine.sampling_params import SamplingParams
from engine.scheduler import Scheduler
from engine.step import KnownDrafts, ModelOutput, RequestOutcome, ScheduledRequest, SchedulerOutput

BLOCK_SIZE = 4
EOS_TOKEN_ID = 2
WRONG_TOKEN_ID = 999

Prefix = tuple[str, int]  # salt, hash of the tokens up to and with this one
Slots = dict[int, Prefix]


def make_scheduler(
    *,
    num_blocks: int = 64,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 64,
    num_draft_tokens: int = 0,
    has_draft: bool = False,
    max_model_len: int = 200,
    draft_max_len: int | None = None,
    known_drafts: KnownDrafts | None = None,
    planner: DraftPlanner | None = None,
    background_slowdown: float = 0.1,
    clock: Callable[[], float] = lambda: 1.0,
) -> Scheduler:
    """Make a scheduler over a pool of its own."""
    return Scheduler(
        SchedulerConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            background_slowdown=background_slowdown,
        ),
        KVCacheManager(num_blocks, BLOCK_SIZE),
        planner=planner or FixedPlanner(known_drafts, num_draft_tokens),
        draft_follows=has_draft and num_draft_tokens > 0,
        max_model_len=max_model_len,
        draft_max_len=draft_max_len,
        clock=clock,
    )


def make_request(
    request_id: str,
    prompt: list[int] | int,
    *,
    max_tokens: int = 8,
    priority: int = 0,
    arrival_time: float = 0.0,
    cache_salt: str = "",
    stop_token_ids: tuple[int, ...] = (),
    may_stop: bool = False,
    is_background: bool = False,
) -> Request:
    """Make a request.

    Args:
        request_id: its name.
        prompt: token ids, or how many tokens of its own it has.
        max_tokens: tokens to generate at most; exactly, unless `may_stop`.
        priority: lower is served first.
        arrival_time: seconds; 0 = when it is added.
        cache_salt: keeps its prefixes apart.
        stop_token_ids: tokens that end the answer.
        may_stop: whether the model's end-of-sequence token ends the answer.
        is_background: whether it is background work.
    """
    if isinstance(prompt, int):
        first = 10_000 + sum(map(ord, request_id)) * 1_000
        prompt = list(range(first, first + prompt))
    return Request(
        request_id=request_id,
        prompt_token_ids=prompt,
        params=SamplingParams(seed=0, max_tokens=max_tokens, stop_token_ids=stop_token_ids),
        eos_token_ids=frozenset({EOS_TOKEN_ID} if may_stop else ()),
        priority=priority,
        arrival_time=arrival_time,
        max_total_tokens=len(prompt) + max_tokens,
        cache_salt=cache_salt,
        is_background=is_background,
    )


def token_at(request: Request, position: int) -> int:
    """Return the token that the model chooses at a position; one in 23 is end-of-sequence."""
    mixed = random.Random(f"{request.request_id}/{position}").randrange(10**6)
    return EOS_TOKEN_ID if mixed % 23 == 0 else 100 + mixed % 7


def expected_answer(request: Request, max_total_tokens: int) -> list[int]:
    """Return what plain decoding would give."""
    answer: list[int] = []
    for position in range(request.num_prompt_tokens, max_total_tokens):
        answer.append(token_at(request, position))
        if answer[-1] in request.eos_token_ids:
            break
    return answer


@dataclass(slots=True)
class FakeModel:
    """Runs steps, drafts included.

    Attributes:
        block_size: tokens per block.
        has_draft: whether the drafts' model keeps slots of its own.
        draft_max_len: positions that it knows.
        acceptance: probability that a draft token is right.
        rng: decides acceptance and how many of the drafts asked for are proposed.
        num_computed: tokens that the target computed, by request id.
    """

    block_size: int
    has_draft: bool = False
    draft_max_len: int = 10**9
    acceptance: float = 0.5
    proposes_fewer: bool = False
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    num_computed: dict[str, int] = field(default_factory=dict)
    _target_slots: Slots = field(default_factory=dict)
    _draft_slots: Slots = field(default_factory=dict)

    def run(self, output: SchedulerOutput) -> ModelOutput:
        """Compute a step."""
        return ModelOutput([self._run_share(share) for share in output.scheduled])

    def _run_share(self, share: ScheduledRequest) -> RequestOutcome:
        request = share.request
        drafts = self._drafts(share)
        tokens = request.token_ids + drafts
        num_draft_computed = 0
        if self.has_draft:
            num_draft_computed = self._run_draft(share, tokens, len(drafts))
        start = request.num_computed_tokens
        end = start + share.num_tokens + len(drafts)
        self._compute(self._target_slots, share, tokens, start, end)
        counted = self.num_computed.get(request.request_id, 0)
        self.num_computed[request.request_id] = counted + share.num_tokens
        accepted = self._accept(share, drafts)
        return RequestOutcome(
            sampled=accepted,
            num_draft_tokens=len(drafts),
            num_accepted_tokens=max(0, len(accepted) - 1),
            num_draft_computed_tokens=num_draft_computed,
        )

    def _drafts(self, share: ScheduledRequest) -> list[int]:
        request, count = share.request, share.num_draft_tokens
        if self.proposes_fewer:
            count = self.rng.randint(0, count)
        return [
            token_at(request, request.num_tokens + offset)
            if self.rng.random() < self.acceptance
            else WRONG_TOKEN_ID
            for offset in range(count)
        ]

    def _run_draft(self, share: ScheduledRequest, tokens: list[int], num_drafts: int) -> int:
        request = share.request
        start = request.num_draft_computed_tokens
        end = start + share.num_catch_up_tokens
        if share.draft_rests:
            assert not num_drafts, "a draft that rests drafts nothing"
        elif share.is_draft_current:
            end += share.num_tokens + max(0, num_drafts - 1)
            assert num_drafts == 0 or end <= self.draft_max_len, "the draft knows no such position"
        else:
            assert share.num_draft_tokens == 0, "a draft that lags behind cannot draft"
        end = max(start, min(end, self.draft_max_len))
        self._compute(self._draft_slots, share, tokens, start, end)
        return end

    def _accept(self, share: ScheduledRequest, drafts: list[int]) -> list[int]:
        request = share.request
        emitted: list[int] = []
        if not share.samples:
            assert not drafts, "drafts without a token to start from"
            return emitted
        for offset in range(len(drafts) + 1):
            emitted.append(token_at(request, request.num_tokens + offset))
            if offset == len(drafts) or drafts[offset] != emitted[-1]:
                break
        return emitted

    def _compute(
        self, slots: Slots, share: ScheduledRequest, tokens: list[int], start: int, end: int
    ) -> None:
        salt, table, size = share.request.cache_salt, share.block_ids, self.block_size
        prefix = hash(salt)
        for position in range(end):
            prefix = hash((prefix, tokens[position]))
            slot = table[position // size] * size + position % size
            assert slot >= size, "the scratch block is nobody's"
            if position < start:
                assert slots.get(slot) == (salt, prefix), (
                    f"position {position} holds another prefix"
                )
            else:
                slots[slot] = (salt, prefix)


def run_step(scheduler: Scheduler, model: FakeModel) -> list[RequestDelta]:
    """Advance by one step and check every invariant of the cache."""
    output = scheduler.schedule()
    scheduler.kv.check_invariants()
    assert output.num_tokens <= scheduler.config.max_num_batched_tokens
    assert len(output.scheduled) <= scheduler.config.max_num_seqs
    deltas = scheduler.update(output, model.run(output))
    scheduler.kv.check_invariants()
    return deltas


def run_to_end(
    scheduler: Scheduler, model: FakeModel, max_steps: int = 1000
) -> dict[str, list[RequestDelta]]:
    """Run until nothing is left; returns the deltas of every request in order."""
    deltas: dict[str, list[RequestDelta]] = {}
    for _ in range(max_steps):
        if not scheduler.has_unfinished:
            return deltas
        for delta in run_step(scheduler, model):
            deltas.setdefault(delta.request_id, []).append(delta)
    raise AssertionError(f"{scheduler.num_running + scheduler.num_waiting} requests never ended")


def answer_of(deltas: list[RequestDelta]) -> list[int]:
    """Join the tokens of a request's deltas."""
    return [token_id for delta in deltas for token_id in delta.new_token_ids]
