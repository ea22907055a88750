"""From logits to tokens: one pipeline for target and draft rows, with drafts and without.

A row's token is `argmax(processed logits + noise)`, where both depend only on the row's logits,
its request's parameters and tokens, the drafts in front of it and its position, never on the batch.
Order: allowed ids, one-token bad words, biases, grammar, longer bad words, min_tokens, penalties,
temperature, min-p, top-k, top-p, noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch

from engine.request import Request
from engine.sampling import logits_processors as processors
from engine.sampling.banned_tokens import long_word_ends, too_early_ends
from engine.sampling.grammar_bitmask import allow_only
from engine.sampling.grammar_masks import GrammarMasks
from engine.sampling.logprobs import RowLogprobs, compute_logprobs
from engine.sampling.noise_rows import NoiseRows
from engine.sampling.request_state import TokenBiases, TokenCounts, has_bias
from engine.sampling.sampling_batch import Claim, Rows, SamplingBatch
from engine.sampling_params import SamplingParams


@dataclass(slots=True, eq=False)
class SamplerOutput:
    """One pass's tokens.

    Attributes:
        token_ids: `[num_rows]`, int64; 0 in invalid rows.
        is_invalid: `[num_rows]`, bool: the logits held NaN or +inf, or no token was possible.
        logprobs: of the model itself, when a request asked for them.
        margins: `[num_rows]`, float32: by how much each token's score leads, noise included; when
            asked for.
    """

    token_ids: torch.Tensor
    is_invalid: torch.Tensor
    logprobs: RowLogprobs | None = None
    margins: torch.Tensor | None = None


class Sampler:
    """Samples rows of logits and keeps what penalties, biases and noise need between steps.

    Args:
        vocab_size: the widest logits that will be sampled.
        device: where logits are.
        grammars: what the answers of constrained requests may be; None = there are none.
    """

    def __init__(
        self,
        vocab_size: int,
        device: torch.device | str = "cpu",
        grammars: GrammarMasks | None = None,
    ) -> None:
        self._grammars = grammars or GrammarMasks()
        self._counts = TokenCounts(vocab_size, torch.device(device))
        self._biases = TokenBiases(vocab_size, torch.device(device))
        self._noise = NoiseRows()

    @property
    def noise_seconds(self) -> float:
        """Time spent drawing noise so far, for drafts and for the target."""
        return self._noise.seconds

    def evict(self, request_ids: Iterable[str]) -> None:
        """Forget requests that have ended; unknown ids are fine."""
        ended = list(request_ids)
        self._counts.evict(ended)
        self._biases.evict(ended)
        self._grammars.evict(ended)

    def begin(self, batch: SamplingBatch, rows: Rows, draft_token_ids: torch.Tensor) -> None:
        """Start, before the model runs, on what sampling these rows will need of grammars.

        Arguments are those of `sample`, which knows the pass by the same `rows`.
        """
        self._grammars.begin(batch, rows, draft_token_ids)

    def forced_tokens(self, request: Request, limit: int) -> list[int]:
        """The tokens that a request's grammar leaves no choice about, at most `limit`."""
        return self._grammars.forced_tokens(request, limit)

    @torch.inference_mode()
    def sample(
        self,
        logits: torch.Tensor,
        batch: SamplingBatch,
        rows: Rows,
        draft_token_ids: torch.Tensor | None = None,
        *,
        with_logprobs: bool = True,
        with_margins: bool = False,
    ) -> SamplerOutput:
        """Sample one token per row.

        Args:
            logits: `[num_rows, vocab]`, any float type; float32 logits may be overwritten.
            batch: this step's requests.
            rows: what each row samples.
            draft_token_ids: `[num_requests, max_offset]`, int64; a row at offset j reads the first
                j of its request. None where every offset is 0.
            with_logprobs: False for drafts, whose log probabilities nobody asks for.
            with_margins: True where the lead of each token is wanted; not with log probabilities.
        """
        logits = logits.float()
        num_top = _wanted_logprobs(batch) if with_logprobs else None
        raw = logits
        if not batch.is_argmax_only:
            raw = logits if num_top is None else logits.clone()
            self._process(logits, batch, rows, draft_token_ids)
            self._add_noise(logits, batch, rows)
        token_ids, is_invalid = processors.choose(logits)
        logprobs = None if num_top is None else compute_logprobs(raw, token_ids, num_top)
        margins = processors.margins(logits, token_ids) if with_margins else None
        return SamplerOutput(token_ids, is_invalid, logprobs, margins)

    @torch.inference_mode()
    def process(
        self,
        logits: torch.Tensor,
        batch: SamplingBatch,
        rows: Rows,
        draft_token_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Apply everything but the noise: softmax gives the probabilities that are sampled from.

        Greedy rows are left without temperature and filters. Arguments are those of `sample`.

        Returns:
            `[num_rows, vocab]`, float32.
        """
        logits = logits.float()
        self._process(logits, batch, rows, draft_token_ids)
        return logits

    def _process(
        self,
        logits: torch.Tensor,
        batch: SamplingBatch,
        rows: Rows,
        draft_token_ids: torch.Tensor | None,
    ) -> None:
        self._add_biases(logits, batch, rows)
        masked, masks = self._grammars.masks(batch, rows, draft_token_ids)
        if masks is not None:
            _on_rows(logits, masked, partial(allow_only, masks=masks))
        _ban(logits, long_word_ends(batch, rows, draft_token_ids) + too_early_ends(batch, rows))
        self._penalize(logits, batch, rows, draft_token_ids)
        _warp(logits, batch, rows)

    def _add_biases(self, logits: torch.Tensor, batch: SamplingBatch, rows: Rows) -> None:
        biased = batch.select(rows, has_bias)
        if biased:
            biases = self._biases.rows(batch.requests, [rows.request_index[r] for r in biased])
            _on_rows(logits, biased, lambda part: part.add_(biases[:, : logits.shape[-1]]))

    def _penalize(
        self,
        logits: torch.Tensor,
        batch: SamplingBatch,
        rows: Rows,
        draft_token_ids: torch.Tensor | None,
    ) -> None:
        penalized = batch.select(rows, _has_penalties)
        if not penalized:
            return
        request_index = [rows.request_index[row] for row in penalized]
        offsets = [rows.offset[row] for row in penalized]
        in_prompt, counts = self._counts.rows(batch.requests, batch.num_tokens, request_index)
        if any(offsets):
            assert draft_token_ids is not None, "a row behind drafts needs their ids"
            _count_drafts(counts, draft_token_ids, request_index, offsets)
        in_prompt, counts = in_prompt[:, : logits.shape[-1]], counts[:, : logits.shape[-1]]
        params = batch.params_of(rows, penalized)

        def penalize(part: torch.Tensor) -> None:
            processors.apply_penalties(
                part,
                in_prompt,
                counts,
                repetition=[p.repetition_penalty for p in params],
                presence=[p.presence_penalty for p in params],
                frequency=[p.frequency_penalty for p in params],
            )

        _on_rows(logits, penalized, penalize)

    def _add_noise(self, logits: torch.Tensor, batch: SamplingBatch, rows: Rows) -> None:
        sampled = batch.select(rows, _is_sampled)
        if sampled:
            noise = self._noise.rows(batch, rows, sampled)[:, : logits.shape[-1]]
            _on_rows(logits, sampled, lambda part: part.add_(noise))


def _is_sampled(params: SamplingParams) -> bool:
    return not params.is_greedy


def _has_penalties(params: SamplingParams) -> bool:
    return params.has_penalties


def _is_scaled(params: SamplingParams) -> bool:
    return not params.is_greedy and params.temperature != 1.0


def _has_min_p(params: SamplingParams) -> bool:
    return not params.is_greedy and params.min_p > 0.0


def _has_top_k(params: SamplingParams) -> bool:
    return not params.is_greedy and params.top_k > 0


def _has_top_p(params: SamplingParams) -> bool:
    return not params.is_greedy and params.top_p < 1.0


_Change = Callable[[list[SamplingParams], torch.Tensor], None]
_WARPERS: tuple[tuple[Claim, _Change], ...] = (
    (
        _is_scaled,
        lambda ps, part: processors.scale_by_temperature(part, [p.temperature for p in ps]),
    ),
    (_has_min_p, lambda ps, part: processors.keep_min_p(part, [p.min_p for p in ps])),
    (_has_top_k, lambda ps, part: processors.keep_top_k(part, [p.top_k for p in ps])),
    (_has_top_p, lambda ps, part: processors.keep_top_p(part, [p.top_p for p in ps])),
)


def _warp(logits: torch.Tensor, batch: SamplingBatch, rows: Rows) -> None:
    """Temperature and filters, each on the rows that ask for it."""
    for claim, change in _WARPERS:
        chosen = batch.select(rows, claim)
        if chosen:
            _on_rows(logits, chosen, partial(change, batch.params_of(rows, chosen)))


def _ban(logits: torch.Tensor, banned: list[tuple[int, int]]) -> None:
    known = [(row, token_id) for row, token_id in banned if token_id < logits.shape[-1]]
    if known:
        processors.ban_tokens(logits, [row for row, _ in known], [token for _, token in known])


def _on_rows(
    logits: torch.Tensor, chosen: list[int], change: Callable[[torch.Tensor], object]
) -> None:
    """Change some rows in place; all of them without a copy."""
    if len(chosen) == logits.shape[0]:
        change(logits)
        return
    index = torch.tensor(chosen).to(logits.device)
    part = logits[index]
    change(part)
    logits[index] = part


def _wanted_logprobs(batch: SamplingBatch) -> int | None:
    wanted = [r.params.logprobs for r in batch.requests if r.params.logprobs is not None]
    return max(wanted, default=None)


def _count_drafts(
    counts: torch.Tensor,
    draft_token_ids: torch.Tensor,
    request_index: list[int],
    offsets: list[int],
) -> None:
    """Count each row's own draft prefix as part of its answer."""
    width = max(offsets)
    index = torch.tensor([request_index, offsets]).to(counts.device)
    drafts = draft_token_ids[index[0], :width]  # [num_rows, width]
    is_before = torch.arange(width, device=counts.device) < index[1][:, None]
    counts.scatter_add_(1, torch.where(is_before, drafts, 0), is_before.float())
