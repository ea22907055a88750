"""Pure functions on rows of logits, one per sampling parameter; they know no request.

Every function changes `logits: [num_rows, vocab], float32` in place, row by row: what happens to a
row never depends on another one. Impossible tokens are -inf. Neutral parameters change nothing.
"""

from __future__ import annotations

import torch

NEVER = float("-inf")
# Sorting a few hundred candidates is many times cheaper than sorting the vocabulary, and the
# nucleus is nearly always among them.
_NUM_TOP_P_CANDIDATES = 256


def add_bias(logits: torch.Tensor, bias: torch.Tensor) -> None:
    """Add `bias: [num_rows, vocab], float32`; -inf makes a token impossible."""
    logits.add_(bias)


def ban_tokens(logits: torch.Tensor, rows: list[int], token_ids: list[int]) -> None:
    """Make `token_ids[i]` impossible in row `rows[i]`."""
    index = torch.tensor([rows, token_ids], dtype=torch.int64).to(logits.device)
    logits[index[0], index[1]] = NEVER


def apply_penalties(
    logits: torch.Tensor,
    is_in_context: torch.Tensor,
    output_counts: torch.Tensor,
    repetition: torch.Tensor,
    presence: torch.Tensor,
    frequency: torch.Tensor,
) -> None:
    """Make tokens that were already used less (or more) likely.

    The repetition penalty of CTRL (Keskar et al. 2019, 1909.05858, section 4.1) divides positive
    and multiplies negative logits; the other two are subtracted, as OpenAI defines them.

    Args:
        logits: `[num_rows, vocab]`, float32.
        is_in_context: `[num_rows, vocab]`, bool: the token is in the prompt or the answer.
        output_counts: `[num_rows, vocab]`, int32: how often the token is in the answer.
        repetition: `[num_rows]`, float32.
        presence: `[num_rows]`, float32.
        frequency: `[num_rows]`, float32.
    """
    factor = repetition[:, None]
    repeated = torch.where(logits > 0, logits / factor, logits * factor)
    torch.where(is_in_context, repeated, logits, out=logits)
    logits.sub_((output_counts > 0) * presence[:, None])
    logits.sub_(output_counts * frequency[:, None])


def scale_by_temperature(logits: torch.Tensor, temperature: torch.Tensor) -> None:
    """Shift each row so that its largest logit is 0 and divide by `temperature: [num_rows]`.

    The shift keeps the division finite for the smallest temperatures.
    """
    smallest = torch.finfo(torch.float32).tiny
    logits.sub_(logits.amax(dim=-1, keepdim=True))
    logits.div_(temperature.clamp(min=smallest)[:, None])


def keep_min_p(logits: torch.Tensor, min_p: torch.Tensor) -> None:
    """Drop tokens less likely than `min_p: [num_rows]` times the most likely one (2407.01082)."""
    threshold = logits.amax(dim=-1, keepdim=True) + torch.log(min_p)[:, None]
    logits.masked_fill_(logits < threshold, NEVER)


def keep_top_k(logits: torch.Tensor, top_k: torch.Tensor, largest_k: int) -> None:
    """Keep the `top_k: [num_rows], int64` most likely tokens, and those that tie with the last.

    Args:
        logits: `[num_rows, vocab]`, float32.
        top_k: at least 1 per row.
        largest_k: the largest of them, known on the host.
    """
    size = min(largest_k, logits.shape[-1])
    best = torch.topk(logits, size, dim=-1).values  # [num_rows, size]
    threshold = best.gather(-1, (top_k.clamp(max=size) - 1)[:, None])
    logits.masked_fill_(logits < threshold, NEVER)


def keep_top_p(logits: torch.Tensor, top_p: torch.Tensor) -> None:
    """Keep the fewest most likely tokens that reach `top_p: [num_rows]`, and ties with the last.

    Holtzman et al. 2019 (1904.09751), section 3.1. Probabilities are added up in float64, so that
    the set does not depend on the order in which a device adds.
    """
    size = min(_NUM_TOP_P_CANDIDATES, logits.shape[-1])
    total = torch.logsumexp(logits.double(), dim=-1, keepdim=True)
    best = torch.topk(logits, size, dim=-1).values
    mass = torch.exp(best.double() - total).cumsum(dim=-1)  # [num_rows, size]
    wanted = top_p.double()[:, None]
    if size < logits.shape[-1] and bool((mass[:, -1:] < wanted).any()):
        best = torch.sort(logits, dim=-1, descending=True).values
        mass = torch.exp(best.double() - total).cumsum(dim=-1)
    last = (mass < wanted).sum(dim=-1, keepdim=True).clamp(max=best.shape[-1] - 1)
    logits.masked_fill_(logits < best.gather(-1, last), NEVER)
