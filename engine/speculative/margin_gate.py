"""Ends chains of drafts where the next token promises less than the time it takes.

A draft token that leads by a wide margin is nearly always accepted, one that just wins often is
not: the margin between the two largest scores, noise included, says how likely the target agrees
(top-2 margin; `benchmarks/acceptance.py` shows that it separates far better than the position). A
chain goes on while one more token is expected to bring more than the same time brings otherwise
(one-step look-ahead, optimal where chances only fall: Chow and Robbins 1961), and a token that was
drafted is verified if it is worth its row of the target. Pure Python.
"""

from __future__ import annotations

import enum
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

from engine.request import Request
from engine.speculative.host_times import Drafting
from engine.speculative.pass_prices import PassPrices

_MEMORY_TOKENS = 600
_LEAST_WEIGHT = 0.01
_RIDGE = 1.0
_MEMORY_NEXT = 500
_PRIOR_NEXT = 10
_LARGEST_MARGIN = 30.0
# One in so many tokens that are not worth their row is verified all the same, to learn from it.
_VERIFY_EVERY = 16
# What is assumed before anything was seen: that 1 of margin means an acceptance of about 0.9.
_PRIOR_WEIGHTS = (-0.5, 3.5)
_PRIOR_HESSIAN = (2.0, 2.0, 4.0)


class Verdict(enum.Enum):
    """What becomes of a chain: its last token is dropped, is its end, or is followed by another."""

    DROP = enum.auto()
    END = enum.auto()
    GO_ON = enum.auto()


class DraftGate(Protocol):
    """Decides, while models draft, whose chains go on.

    Attributes:
        is_listening: whether it wants to judge in this step; where it does not, chains are whole.
    """

    is_listening: bool

    def judge(self, requests: Sequence[Request], margins: Sequence[float]) -> list[Verdict]:
        """Take in one more draft of each request; tells what becomes of its chain."""
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
        longest: rows that the longest request has anyway.
        setbacks: tokens that a rejection costs the next pass, of requests that sample and greedy
            ones.
    """

    tokens_per_second: float
    prices: PassPrices
    num_seqs: int
    num_rows: int
    longest: int = 1
    setbacks: tuple[float, float] = (0.0, 0.0)

    def pass_price(self, num_chains: int) -> tuple[float, float]:
        """Give what another draft pass costs, in tokens: at all, and for each chain in it."""
        first, last = (self.prices.draft_pass(count, Drafting.GATED) for count in (1, num_chains))
        by_chain = (last - first) / (num_chains - 1) if num_chains > 1 else 0.0
        return self.tokens_per_second * (first - by_chain), self.tokens_per_second * by_chain

    def row_price(self, num_verified: int, num_more: int, depth: int) -> tuple[float, float]:
        """Give what rows of the target cost, in tokens: that some are so deep at all, and each.

        Args:
            num_verified: drafts that have a row already.
            num_more: drafts that might get one now.
            depth: their place in their chains, from 1.
        """
        start = self.num_rows + num_verified
        costs, num_seqs = self.prices.costs, self.num_seqs
        before = costs.target_pass(num_seqs, start, max(depth, self.longest))
        deeper = max(depth + 1, self.longest)
        first = costs.target_pass(num_seqs, start + 1, deeper)
        last = costs.target_pass(num_seqs, start + num_more, deeper)
        each = (last - first) / (num_more - 1) if num_more > 1 else 0.0
        worth = self.tokens_per_second * self.prices.target.slope
        return worth * max(0.0, first - before - each), worth * each


@dataclass(slots=True)
class _Share:
    """A share of successes, in which old ones fade."""

    value: float
    _num_seen: int = field(default=_PRIOR_NEXT, init=False)

    def observe(self, is_success: bool) -> None:
        self._num_seen = min(self._num_seen + 1, _MEMORY_NEXT)
        self.value += (is_success - self.value) / self._num_seen


@dataclass(slots=True)
class _Chain:
    """One request's drafts of this step: the margin of each, and the chance to get past all."""

    margins: list[float] = field(default_factory=list)
    survival: float = 1.0


class MarginGate:
    """The gate of a controller: `open` begins a step, `observe` ends it.

    Args:
        prior: chance of a draft that nobody has seen yet, before anything was learnt.

    Attributes:
        is_listening: see `DraftGate`.
    """

    def __init__(self, prior: float = 0.7) -> None:
        self._models = {greedy: MarginSurvival() for greedy in (False, True)}
        self._next_chances = {greedy: _Share(prior) for greedy in (False, True)}
        self._chains: dict[str, _Chain] = {}
        self._exchange: Exchange | None = None
        self.is_listening = True
        self._num_verified = 0
        self._depth = 0
        self._num_doubtful = 0

    @property
    def is_open(self) -> bool:
        """Whether every chain passes."""
        return self._exchange is None

    def open(self, exchange: Exchange | None, *, is_listening: bool = True) -> None:
        """Begin a step; without an exchange rate every chain is drafted and verified in full.

        Margins of such chains are still learnt from, unless it does not listen: reading them takes
        time in every pass.
        """
        self._exchange, self.is_listening = exchange, is_listening
        self._chains.clear()
        self._num_verified = 0
        self._depth = 0

    def judge(self, requests: Sequence[Request], margins: Sequence[float]) -> list[Verdict]:
        """Take in drafts and decide; see `DraftGate.judge`."""
        chances = [self._extend(*pair) for pair in zip(requests, margins, strict=True)]
        if self._exchange is None:
            return [Verdict.GO_ON] * len(chances)
        self._depth += 1
        is_kept = self._keeps(chances)
        self._num_verified += sum(is_kept)
        hopes = [
            chance * self._next_gain(request) if kept else 0.0
            for request, chance, kept in zip(requests, chances, is_kept, strict=True)
        ]
        goes_on = self._goes_on(hopes, sum(is_kept))
        return [
            Verdict.GO_ON if more else Verdict.END if kept else Verdict.DROP
            for more, kept in zip(goes_on, is_kept, strict=True)
        ]

    def num_drafted(self, request: Request) -> int:
        """Give the length of a request's chain of this step, dropped tokens included."""
        chain = self._chains.get(request.request_id)
        return 0 if chain is None else len(chain.margins)

    def survival(self, request: Request, num_drafts: int) -> list[float] | None:
        """Give the chances to get past each of a request's first drafts of this step, by margin.

        None where the gate did not see so many drafts of it.
        """
        chain = self._chains.get(request.request_id)
        if chain is None or num_drafts > len(chain.margins):
            return None
        chances = map(self._models[request.params.is_greedy].chance, chain.margins[:num_drafts])
        return list(accumulate(chances, operator.mul))

    def observe(self, request: Request, num_drafts: int, num_accepted: int) -> None:
        """Learn what became of a request's drafts; drafts of others than models say nothing."""
        chain = self._chains.get(request.request_id)
        if chain is None or num_drafts > len(chain.margins):
            return
        self._models[request.params.is_greedy].observe(chain.margins[:num_drafts], num_accepted)
        # A token that was dropped counts as not accepted: it was drafted for nothing.
        for place in range(1, min(num_accepted + 1, len(chain.margins))):
            self._next_chances[request.params.is_greedy].observe(place < num_accepted)

    def _keeps(self, chances: Sequence[float]) -> list[bool]:
        assert self._exchange is not None, "an open gate asks nobody"
        fixed, row = self._exchange.row_price(self._num_verified, len(chances), self._depth)
        pays = sum(chance - row for chance in chances if chance > row) > fixed
        return [(pays and chance > row) or self._is_to_learn_from() for chance in chances]

    def _next_gain(self, request: Request) -> float:
        """Give the tokens that another draft brings where all before it are accepted."""
        assert self._exchange is not None, "an open gate asks nobody"
        is_greedy = request.params.is_greedy
        chance = self._next_chances[is_greedy].value
        return chance - (1.0 - chance) * self._exchange.setbacks[is_greedy]

    def _goes_on(self, hopes: Sequence[float], num_kept: int) -> list[bool]:
        assert self._exchange is not None, "an open gate asks nobody"
        if not num_kept:
            return [False] * len(hopes)
        fixed, by_chain = self._exchange.pass_price(num_kept)
        deeper, row = self._exchange.row_price(self._num_verified, num_kept, self._depth + 1)
        fixed, price = fixed + deeper, by_chain + row
        gains = [hope - price for hope in hopes]
        if sum(gain for gain in gains if gain > 0.0) <= fixed:
            return [False] * len(hopes)
        return [gain > 0.0 for gain in gains]

    def _is_to_learn_from(self) -> bool:
        self._num_doubtful += 1
        return self._num_doubtful % _VERIFY_EVERY == 0

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
