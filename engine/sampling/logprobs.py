"""What the model itself thought of the sampled tokens: log-softmax of its raw logits.

Log probabilities are those of the model, before penalties, temperature and filters, so they mean
the same whatever the sampling settings. Knows no request; the caller says how many alternatives.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from engine.request import TokenLogprobs


@dataclass(slots=True, eq=False)
class RowLogprobs:
    """Log probabilities of the rows of one pass.

    Attributes:
        chosen: `[num_rows]`, float32, of the sampled token.
        rank: `[num_rows]`, int64, 1 for the most likely token.
        top: `[num_rows, num_top]`, float32, largest first.
        top_token_ids: `[num_rows, num_top]`, int64.
    """

    chosen: torch.Tensor
    rank: torch.Tensor
    top: torch.Tensor
    top_token_ids: torch.Tensor
    _lists: list[TokenLogprobs] | None = field(default=None, init=False)

    def of_row(self, row: int, num_top: int) -> TokenLogprobs:
        """The entry of one row with its `num_top` most likely alternatives."""
        if self._lists is None:
            self._lists = self._to_lists()
        entry = self._lists[row]
        return TokenLogprobs(entry.logprob, entry.rank, entry.top[:num_top])

    def _to_lists(self) -> list[TokenLogprobs]:
        columns = zip(
            self.chosen.tolist(),
            self.rank.tolist(),
            self.top_token_ids.tolist(),
            self.top.tolist(),
            strict=True,
        )
        return [
            TokenLogprobs(logprob, rank, list(zip(token_ids, values, strict=True)))
            for logprob, rank, token_ids, values in columns
        ]


def compute_logprobs(logits: torch.Tensor, token_ids: torch.Tensor, num_top: int) -> RowLogprobs:
    """Take the log-softmax at the sampled and at the most likely tokens.

    Args:
        logits: `[num_rows, vocab]`, float32, as the model gave them.
        token_ids: `[num_rows]`, int64, the sampled tokens.
        num_top: alternatives per row, 0 for the sampled token alone.
    """
    total = torch.logsumexp(logits, dim=-1, keepdim=True)
    chosen = logits.gather(-1, token_ids[:, None])
    rank = (logits > chosen).sum(dim=-1) + 1
    top = torch.topk(logits, min(num_top, logits.shape[-1]), dim=-1)
    return RowLogprobs(
        chosen=(chosen - total).squeeze(-1),
        rank=rank,
        top=top.values - total,
        top_token_ids=top.indices,
    )
