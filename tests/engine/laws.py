"""The law of an answer's first tokens, a test against it, and a verifier that breaks it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from engine.speculative.verifier import Verification, walk

Law = dict[tuple[int, ...], float]
# A standard normal score exceeds this with probability below 1e-6.
SCORE_LIMIT = 4.8


def chi_square(answers: list[list[int]], law: Law) -> float:
    """Pearson's statistic as a standard normal score (Wilson and Hilferty 1931)."""
    counts = Counter(tuple(answer) for answer in answers)
    statistic, cells = 0.0, 0
    for answer, probability in law.items():
        if probability == 0.0:
            assert counts[answer] == 0, f"{answer} is impossible"
            continue
        expected = probability * len(answers)
        statistic += (counts[answer] - expected) ** 2 / expected
        cells += 1
    freedom = cells - 1
    scale = 2.0 / (9.0 * freedom)
    return ((statistic / freedom) ** (1.0 / 3.0) - 1.0 + scale) / scale**0.5


def accept_one_too_many(sampled: Sequence[int], drafts: Sequence[Sequence[int]]) -> Verification:
    """Broken on purpose: the draft after the accepted ones is emitted unverified."""
    result = walk(sampled, drafts)
    for index, (accepted, draft) in enumerate(zip(result.num_accepted, drafts, strict=True)):
        if accepted < len(draft):
            result.emitted[index][accepted] = draft[accepted]
    return result
