"""How two distributions that share their Gumbel noise fall together: the exact joint law."""

from __future__ import annotations

import torch


def coupled_joint(target: torch.Tensor, draft: torch.Tensor) -> torch.Tensor:
    """The probability that target and draft sample tokens (a, b) with shared noise.

    With Gumbel noise g = -log E, E exponential, the target takes argmin E_v / p_v and the draft
    argmin E_v / q_v. Given the two minima s and t, every other E_v exceeds max(p_v s, q_v t); with
    r = t / s the integral over s is elementary, and what is left,

        P(a, b) = p_a q_b * integral over r of dr / (p_a + q_b r + sum_v max(p_v, q_v r))^2
                  with v other than a and b, r from p_b / q_b to p_a / q_a,

    is rational between the points p_v / q_v. For a = b it is 1 / sum_v max(p_v / p_a, q_v / q_a).

    Args:
        target: [vocab], float64, probabilities p.
        draft: [vocab], float64, probabilities q.

    Returns:
        [vocab, vocab], float64: target token, draft token.
    """
    p, q = target.tolist(), draft.tolist()
    joint = torch.zeros(len(p), len(q), dtype=torch.float64)
    for a in range(len(p)):
        for b in range(len(q)):
            if p[a] > 0.0 and q[b] > 0.0:
                joint[a, b] = _same(p, q, a) if a == b else _different(p, q, a, b)
    return joint


def _same(p: list[float], q: list[float], a: int) -> float:
    return 1.0 / sum(max(pv / p[a], qv / q[a]) for pv, qv in zip(p, q, strict=True))


def _different(p: list[float], q: list[float], a: int, b: int) -> float:
    low = p[b] / q[b]
    high = p[a] / q[a] if q[a] > 0.0 else float("inf")
    if low >= high:
        return 0.0
    others = [v for v in range(len(p)) if v not in (a, b)]
    turns = {p[v] / q[v] for v in others if q[v] > 0.0 and low < p[v] / q[v] < high}
    edges = [low, *sorted(turns), high]
    total = 0.0
    for start, end in zip(edges, edges[1:], strict=False):
        middle = (start + end) / 2 if end < float("inf") else start * 2 + 1.0
        constant = p[a] + sum(p[v] for v in others if p[v] >= q[v] * middle)
        slope = q[b] + sum(q[v] for v in others if p[v] < q[v] * middle)
        at_end = 1.0 / (constant + slope * end) if end < float("inf") else 0.0
        total += (1.0 / (constant + slope * start) - at_end) / slope
    return p[a] * q[b] * total
