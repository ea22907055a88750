"""How likely drafts are to be accepted, learnt from those that were verified.

Knows counts, no tensors. What happened long ago weighs less, so that a change of subject is
noticed. A draft is accepted only if all before it were, so what is learnt is the chance of each
position given the positions before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

# A count's weight after this many passes has fallen to a third.
_MEMORY_PASSES = 300
_REQUEST_MEMORY_PASSES = 64
_PRIOR_TOKENS = 10.0
# A request is taken to be like the others until this many of its own tokens say otherwise.
_REQUEST_PRIOR_TOKENS = 80.0
_NUM_BUCKETS = 12
_LARGEST_WEIGHT = 1e6
# What holds for anybody changes slowly, and is asked for in every step.
_REFRESH_PASSES = 8


@dataclass(slots=True)
class _Rates:
    """Shares of successes, position by position, in which old ones fade.

    Instead of all old counts fading, new ones weigh ever more: a few additions per pass.
    """

    memory: int
    tried: list[float]
    succeeded: list[float]
    weight: float = 1.0

    @classmethod
    def of(cls, num_positions: int, memory: int) -> _Rates:
        return cls(memory, [0.0] * num_positions, [0.0] * num_positions)

    def observe(self, num_tried: int, num_succeeded: int) -> None:
        """Count the first positions as tried, and the first of these as successes."""
        weight = self.weight
        for position in range(min(num_tried, len(self.tried))):
            self.tried[position] += weight
            if position < num_succeeded:
                self.succeeded[position] += weight
        self.weight = weight * (1.0 + 1.0 / self.memory)
        if self.weight > _LARGEST_WEIGHT:
            self.tried = [count / self.weight for count in self.tried]
            self.succeeded = [count / self.weight for count in self.succeeded]
            self.weight = 1.0

    def estimate(self, position: int, prior: float, weight: float) -> float:
        weight *= self.weight
        return (self.succeeded[position] + prior * weight) / (self.tried[position] + weight)

    def estimate_all(self, prior: float, weight: float) -> float:
        """Estimate over all positions together."""
        weight *= self.weight
        return (sum(self.succeeded) + prior * weight) / (sum(self.tried) + weight)


@dataclass(frozen=True, slots=True)
class ChainEnd:
    """How far a chain of a model's drafts got.

    Attributes:
        num_planned: drafts that the plan allowed.
        num_drafted: drafts that were made.
        num_verified: of these, those that were verified.
    """

    num_planned: int
    num_drafted: int
    num_verified: int


@dataclass(slots=True)
class Prospect:
    """What a chain of a model's drafts promises, position by position.

    Attributes:
        accepted: for each, the chance that it is verified and accepted with all before it.
        verified: for each, the chance that it is drafted and worth verifying.
        drafted: for each, the chance that the chain gets so far; 1 where no gate ends chains.
    """

    accepted: list[float] = field(default_factory=list)
    verified: list[float] = field(default_factory=list)
    drafted: list[float] = field(default_factory=list)


@dataclass(slots=True)
class ModelSurvival:
    """Chances of a draft model's tokens: by position over all requests, and by request.

    A chain that was ended before its planned length counts as not accepted there: what is learnt
    is what planning so many positions brings, whoever ends chains.

    Args:
        num_positions: drafts of a pass at most.
        prior: what is assumed before anything was seen.
        wider: chances of more requests, these among them; assumed before enough was seen.
    """

    num_positions: int
    prior: float = 0.7
    wider: ModelSurvival | None = None
    _accepted: _Rates = field(init=False)
    _verified: _Rates = field(init=False)
    _drafted: _Rates = field(init=False)
    _requests: dict[str, _Rates] = field(default_factory=dict, init=False)
    _prospects: dict[int, Prospect] = field(default_factory=dict, init=False)
    _narrower: list[ModelSurvival] = field(default_factory=list, init=False)
    _num_unseen: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._accepted = _Rates.of(self.num_positions, _MEMORY_PASSES)
        self._verified = _Rates.of(self.num_positions, _MEMORY_PASSES)
        self._drafted = _Rates.of(self.num_positions, _MEMORY_PASSES)
        if self.wider is not None:
            self.wider._narrower.append(self)

    def observe(self, request_id: str, chain: ChainEnd, num_accepted: int) -> None:
        """Learn from one pass; positions behind the first rejection say nothing."""
        if self.wider is not None:
            self.wider.observe(request_id, chain, num_accepted)
        num_planned = chain.num_planned
        num_tried = min(num_accepted + 1, num_planned)
        self._accepted.observe(num_tried, num_accepted)
        # Each rate is that of a position among the chains that came to it.
        self._drafted.observe(min(chain.num_drafted + 1, num_planned), chain.num_drafted)
        self._verified.observe(min(chain.num_drafted, num_planned), chain.num_verified)
        own = self._requests.get(request_id)
        if own is None:
            own = self._requests[request_id] = _Rates.of(self.num_positions, _REQUEST_MEMORY_PASSES)
        own.observe(num_tried, num_accepted)
        self._num_unseen += 1
        if self._num_unseen >= _REFRESH_PASSES:
            self._num_unseen = 0
            for survival in (self, *self._narrower):
                survival._prospects.clear()

    def prospect(self, limit: int) -> Prospect:
        """Give what the next `limit` drafts of anybody promise, but for the latest few passes."""
        found = self._prospects.get(limit)
        if found is None:
            found = self._prospects[limit] = self._estimate(limit, 0.0)
        return found

    def prospect_of(self, request_id: str, limit: int) -> Prospect:
        """Give what the next `limit` drafts of a request promise."""
        own = self._requests.get(request_id)
        if own is None:
            return self.prospect(limit)
        overall = self._overall
        return self._estimate(limit, own.estimate_all(overall, _REQUEST_PRIOR_TOKENS) - overall)

    @property
    def _overall(self) -> float:
        prior = self.prior if self.wider is None else self.wider._overall
        return self._accepted.estimate_all(prior, _PRIOR_TOKENS)

    def _estimate(self, limit: int, shift: float) -> Prospect:
        overall = self._overall
        found = Prospect()
        accepted = drafted = 1.0
        for position in range(min(limit, self.num_positions)):
            prior = overall if self.wider is None else self.wider._chance(position)
            drafted *= self._drafted.estimate(position, 1.0, 1.0)
            verified = drafted * self._verified.estimate(position, 1.0, 1.0)
            chance = self._accepted.estimate(position, prior, _PRIOR_TOKENS) + shift
            accepted *= min(max(chance, 0.0), 0.99)
            found.accepted.append(min(accepted, verified))
            found.verified.append(verified)
            found.drafted.append(drafted)
        return found

    def _chance(self, position: int) -> float:
        """Give the chance of a position given those before it."""
        return self._accepted.estimate(position, self._overall, _PRIOR_TOKENS)

    def evict(self, request_ids: Iterable[str]) -> None:
        """Forget requests that have ended; unknown ids are fine."""
        ended = list(request_ids)
        for request_id in ended:
            self._requests.pop(request_id, None)
        if self.wider is not None:
            self.wider.evict(ended)


@dataclass(slots=True)
class ClaimedSurvival:
    """Corrects what a drafter says of its own chances by what became of such claims."""

    _rates: list[_Rates] = field(
        default_factory=lambda: [_Rates.of(1, _MEMORY_PASSES) for _ in range(_NUM_BUCKETS)],
        init=False,
    )

    def observe(self, claimed: Sequence[float], num_accepted: int) -> None:
        """Learn from a draft that was verified as far as `claimed` goes.

        Args:
            claimed: the drafter's survival of each token.
            num_accepted: leading tokens that were accepted.
        """
        before = 1.0
        for position, chance in enumerate(claimed[: num_accepted + 1]):
            self._rates[_bucket(chance / before)].observe(1, int(position < num_accepted))
            before = chance

    def survival(self, claimed: Sequence[float]) -> list[float]:
        """Correct a drafter's claims."""
        corrected: list[float] = []
        chance = before = 1.0
        for claim in claimed:
            step = claim / before
            chance *= self._rates[_bucket(step)].estimate(0, step, _PRIOR_TOKENS)
            corrected.append(chance)
            before = claim
        return corrected


def _bucket(chance: float) -> int:
    return min(int(chance * (_NUM_BUCKETS - 1)), _NUM_BUCKETS - 1)
