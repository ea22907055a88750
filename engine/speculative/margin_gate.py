"""Ends chains of drafts where the next token promises less than the time it takes.

A draft token that leads by a wide margin is nearly always accepted, one that just wins often is
not: the margin between the two largest scores, noise included, says how likely the target agrees
(top-2 margin; `benchmarks/acceptance.py` shows that it separates far better than the position). A
chain goes on while one more token is expected to bring more than the same time brings otherwise
(one-step look-ahead, optimal where chances only fall: Chow and Robbins 1961). Pure Python.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from engine.request import Request
from engine.speculative.pass_prices import PassPrices

_MEMORY_TOKENS = 2000
_LEAST_WEIGHT = 0.01
_RIDGE = 1.0
_MEMORY_NEXT = 500
_PRIOR_NEXT = 10
_LARGEST_MARGIN = 30.0
# What is assumed before anything was seen: that 1 of margin means an acceptance of about 0.9.
_PRIOR_WEIGHTS = (-0.5, 3.5)
_PRIOR_HESSIAN = (2.0, 2.0, 4.0)


class DraftGate(Protocol):
    """Decides, while models draft, whose chains go on."""

    def judge(self, requests: Sequence[Request], margins: Sequence[float]) -> list[bool]:
        """Take in one more draft of each request; tells who drafts another."""
        ...


@dataclass(slots=True)
class MarginSurvival:
    """The chance that a draft is accepted given those before it, by its margin.

    A logistic regression on log(1 + margin), refitted with every verified token by Newton's method
    on statistics in which old tokens fade.
    """

    _weights: tuple[float, float] = field(default=_PRIOR_WEIGHTS, init=False)
    _hessian: tuple[float, float, float] = field(default=_PRIOR_HESSIAN, init=False)

    def chance(self, margin: float) -> float:
        """Give the chance for a margin, in units of logits over temperature."""
        bias, slope = self._weights
        return _logistic(bias + slope * _feature(margin))

    def observe(self, margins: Sequence[float], num_accepted: int) -> None:
        """Learn from a verified chain; tokens behind the first rejection say nothing."""
        keep = 1.0 - 1.0 / _MEMORY_TOKENS
        a, b, c = self._hessian
        bias, slope = self._weights
        for position, margin in enumerate(margins[: num_accepted + 1]):
            feature = _feature(margin)
            chance = _logistic(bias + slope * feature)
            weight = max(chance * (1.0 - chance), _LEAST_WEIGHT)
            a, b = a * keep + weight, b * keep + weight * feature
            c = c * keep + weight * feature * feature
            # The ridge keeps the step finite where all margins are alike.
            ridged_a, ridged_c = a + _RIDGE, c + _RIDGE
            step = (float(position < num_accepted) - chance) / (ridged_a * ridged_c - b * b)
            bias += step * (ridged_c - b * feature)
            slope += step * (ridged_a * feature - b)
        self._hessian = a, b, c
        self._weights = bias, slope


@dataclass(slots=True)
class Exchange:
    """What time is worth in a step, and what more drafts cost.

    Attributes:
        tokens_per_second: what the same time brings otherwise.
        prices: of passes.
        num_seqs: requests of the step.
        num_rows: rows that the target's pass has anyway.
    """

    tokens_per_second: float
    prices: PassPrices
    num_seqs: int
    num_rows: int

    def price(self, num_chains: int, num_drafted: int) -> tuple[float, float]:
        """Give what another pass costs, in tokens: at all, and for each chain that goes on.

        Args:
            num_chains: chains that may go on.
            num_drafted: tokens drafted before, each a row of the target.
        """
        first, last = self.prices.draft_pass(1), self.prices.draft_pass(num_chains)
        by_chain = (last - first) / (num_chains - 1) if num_chains > 1 else 0.0
        start = self.num_rows + num_drafted
        rows = self.prices.target_by_rows(self.num_seqs, start + num_chains)
        by_row = (rows[start + num_chains] - rows[start]) * self.prices.target.slope / num_chains
        worth = self.tokens_per_second
        return worth * (first - by_chain), worth * (by_chain + by_row)


@dataclass(slots=True)
class _Chain:
    """One request's drafts of this step: the margin of each, and the chance to get past all."""

    margins: list[float] = field(default_factory=list)
    survival: float = 1.0


class MarginGate:
    """The gate of a controller: `open` begins a step, `observe` ends it.

    Args:
        prior: chance of a draft that nobody has seen yet, before anything was learnt.
    """

    def __init__(self, prior: float = 0.7) -> None:
        self._models = {greedy: MarginSurvival() for greedy in (False, True)}
        self._next_chance = prior
        self._num_next = _PRIOR_NEXT
        self._chains: dict[str, _Chain] = {}
        self._exchange: Exchange | None = None
        self._num_drafted = 0

    def open(self, exchange: Exchange) -> None:
        """Begin a step."""
        self._exchange = exchange
        self._chains.clear()
        self._num_drafted = 0

    def judge(self, requests: Sequence[Request], margins: Sequence[float]) -> list[bool]:
        """Take in drafts and decide; see `DraftGate.judge`."""
        exchange = self._exchange
        assert exchange is not None, "a step is opened before it drafts"
        fixed, by_chain = exchange.price(len(requests), self._num_drafted + len(requests))
        self._num_drafted += len(requests)
        gains = [
            self._extend(request, margin) * self._next_chance - by_chain
            for request, margin in zip(requests, margins, strict=True)
        ]
        if sum(gain for gain in gains if gain > 0.0) <= fixed:
            return [False] * len(gains)
        return [gain > 0.0 for gain in gains]

    def observe(self, request: Request, num_drafts: int, num_accepted: int) -> None:
        """Learn what became of a request's drafts; drafts of others than models say nothing."""
        chain = self._chains.get(request.request_id)
        if chain is None or num_drafts > len(chain.margins):
            return
        margins = chain.margins[:num_drafts]
        self._models[request.params.is_greedy].observe(margins, num_accepted)
        for place in range(1, min(num_accepted + 1, num_drafts)):
            self._num_next = min(self._num_next + 1, _MEMORY_NEXT)
            seen = float(place < num_accepted)
            self._next_chance += (seen - self._next_chance) / self._num_next

    def _extend(self, request: Request, margin: float) -> float:
        chain = self._chains.get(request.request_id)
        if chain is None:
            chain = self._chains[request.request_id] = _Chain()
        chain.margins.append(margin)
        chain.survival *= self._models[request.params.is_greedy].chance(margin)
        return chain.survival


def _logistic(score: float) -> float:
    return 1.0 / (1.0 + math.exp(-min(max(score, -30.0), 30.0)))


def _feature(margin: float) -> float:
    # A row that broke has no margin at all.
    return math.log1p(min(max(margin, 0.0), _LARGEST_MARGIN)) if margin == margin else 0.0
