"""What the sampler asks of grammars: the masks of a pass's rows, worked out beside the model.

`begin` starts the work on threads of its own before the model runs (llguidance does not hold the
interpreter), `masks` waits for it when the logits are there. The drafter's masks are the verifier's
own: both ask the same matcher about the same prefixes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch

from engine.request import Request
from engine.sampling.grammar_compiler import CompiledGrammar
from engine.sampling.grammar_matcher import Outlook, RequestMatcher
from engine.sampling.grammar_vocabulary import Mask
from engine.sampling.sampling_batch import Rows, SamplingBatch
from engine.sampling_params import SamplingParams
from engine.step import RequestOutcome
from engine.structured_output import REFUSED

_NUM_THREADS = max(1, min(8, (os.cpu_count() or 1) // 2))


@dataclass(slots=True)
class _Question:
    """What may follow a request's first `num_tokens` tokens and these drafts?"""

    matcher: RequestMatcher
    num_tokens: int
    drafts: list[int]


@dataclass(slots=True)
class _Pass:
    """Questions about the rows of one pass, being answered.

    Attributes:
        rows: of the pass.
        chosen: which of them have a grammar.
        parts: their answers, in order.
    """

    rows: Rows
    chosen: list[int]
    parts: list[Future[tuple[list[Outlook], float]]]


class GrammarMasks:
    """Follows the answers of all constrained requests.

    Attributes:
        mask_seconds: spent on masks, on all threads together.
        wait_seconds: of which the sampler had to wait.
    """

    def __init__(self) -> None:
        self._matchers: dict[str, RequestMatcher] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._pass: _Pass | None = None
        self.mask_seconds = 0.0
        self.wait_seconds = 0.0

    def admit(self, request: Request, compiled: CompiledGrammar) -> None:
        """Follow a request's answer from now on."""
        self._matchers[request.request_id] = RequestMatcher(compiled, request)

    def evict(self, request_ids: Iterable[str]) -> None:
        """Forget requests that have ended; unknown ids are fine."""
        for request_id in request_ids:
            self._matchers.pop(request_id, None)

    def begin(
        self, batch: SamplingBatch, rows: Rows, draft_token_ids: torch.Tensor | None = None
    ) -> None:
        """Start on the masks of a pass whose logits are about to be computed.

        Args:
            batch: this step's requests.
            rows: what each row of the pass samples; `masks` knows the pass by this object.
            draft_token_ids: `[num_requests, max_offset]`, int64; the drafts in front of the rows.
        """
        chosen = batch.select(rows, has_grammar)
        if not chosen:
            return
        self._finish()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_NUM_THREADS, "grammar-masks")
        parts = _in_parts(self._questions(batch, rows, chosen, draft_token_ids))
        self._pass = _Pass(rows, chosen, [self._pool.submit(_answer, part) for part in parts])

    def masks(
        self, batch: SamplingBatch, rows: Rows, draft_token_ids: torch.Tensor | None = None
    ) -> tuple[list[int], Mask | None]:
        """Give the masks of a pass's rows; arguments as in `begin`, which may have been skipped.

        A row behind a draft that its grammar forbids is never reached, and has no mask.

        Returns:
            The rows that have a mask, and `[num_rows, num_words]` int32 of little-endian bits, set
            where the token is allowed; None where no row has one.
        """
        if not batch.select(rows, has_grammar):
            return [], None
        started = time.perf_counter()
        if self._pass is None or self._pass.rows is not rows:
            self.begin(batch, rows, draft_token_ids)
        assert self._pass is not None, "a pass has begun"
        chosen, outlooks = self._pass.chosen, self._finish()
        self.wait_seconds += time.perf_counter() - started
        masked = [(r, o.mask) for r, o in zip(chosen, outlooks, strict=True) if o.mask is not None]
        if not masked:
            return [], None
        return [row for row, _ in masked], np.stack([mask for _, mask in masked])

    def forced_tokens(self, request: Request, limit: int) -> list[int]:
        """The tokens that the request's grammar forces next, at most `limit`; drafts for free."""
        matcher = self._matchers.get(request.request_id)
        if matcher is None or limit <= 0:
            return []
        self._finish()
        return matcher.forced_tokens(limit)

    def forced_places(self, request: Request, sampled: Sequence[int]) -> tuple[int, ...]:
        """Give the places among a step's tokens at which the request's grammar left one choice."""
        matcher = self._matchers.get(request.request_id)
        if matcher is None:
            return ()
        masks = (
            matcher.outlook(request.num_tokens, sampled[:place]).mask
            for place in range(len(sampled))
        )
        return tuple(
            place
            for place, mask in enumerate(masks)
            if mask is not None and _num_allowed(mask) == 1
        )

    def settle(self, request: Request, outcome: RequestOutcome) -> None:
        """Cut an outcome where its grammar ends, or where it cannot be followed any further.

        The tokens in front of that are kept: they would have come without drafts too.
        """
        matcher = self._matchers.get(request.request_id)
        if matcher is None or outcome.error is not None:
            return
        sampled = outcome.sampled
        if matcher.has_failed:
            for count in range(len(sampled)):
                error = matcher.outlook(request.num_tokens, sampled[:count]).error
                if error is not None:
                    _cut(outcome, count)
                    outcome.error = None if count else f"{REFUSED}it cannot go on ({error})."
                    return
        if not request.eos_token_ids:
            for count in range(1, len(sampled) + 1):
                if matcher.outlook(request.num_tokens, sampled[:count]).is_complete:
                    _cut(outcome, count)
                    outcome.is_complete = True
                    return

    def _finish(self) -> list[Outlook]:
        """Wait for the pass that is being worked on."""
        current, self._pass = self._pass, None
        outlooks: list[Outlook] = []
        for part in current.parts if current is not None else ():
            answers, seconds = part.result()
            outlooks += answers
            self.mask_seconds += seconds
        return outlooks

    def _questions(
        self,
        batch: SamplingBatch,
        rows: Rows,
        chosen: Sequence[int],
        draft_token_ids: torch.Tensor | None,
    ) -> list[_Question]:
        drafts: list[list[int]] = []
        if any(rows.offset[row] for row in chosen):
            assert draft_token_ids is not None, "a row behind drafts needs their ids"
            drafts = draft_token_ids.tolist()
        questions = []
        for row in chosen:
            index, offset = rows.request_index[row], rows.offset[row]
            matcher = self._matchers.get(batch.requests[index].request_id)
            assert matcher is not None, "a constrained request is admitted with its grammar"
            prefix = drafts[index][:offset] if offset else []
            questions.append(_Question(matcher, batch.num_tokens[index], prefix))
        return questions


def has_grammar(params: SamplingParams) -> bool:
    """Whether the answer's shape is given."""
    return params.structured_output is not None


def _in_parts(questions: list[_Question]) -> list[list[_Question]]:
    """Share questions out among threads: those about one request stay together, in order."""
    groups = [list(group) for _, group in groupby(questions, key=lambda q: id(q.matcher))]
    size = -(-len(groups) // _NUM_THREADS)
    return [
        [question for group in groups[first : first + size] for question in group]
        for first in range(0, len(groups), size)
    ]


def _answer(questions: list[_Question]) -> tuple[list[Outlook], float]:
    started = time.perf_counter()
    outlooks = [q.matcher.outlook(q.num_tokens, q.drafts) for q in questions]
    return outlooks, time.perf_counter() - started


def _num_allowed(mask: Mask) -> int:
    return int(np.unpackbits(mask.view(np.uint8)).sum())


def _cut(outcome: RequestOutcome, count: int) -> None:
    """Keep the first tokens; the last of them was never computed by the target as known."""
    outcome.sampled = outcome.sampled[:count]
    outcome.num_accepted_tokens = min(outcome.num_accepted_tokens, max(0, count - 1))
