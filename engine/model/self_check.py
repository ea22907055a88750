"""Proves on a few tokens that a loaded model gives its own words through the paged cache.

Some architectures reach attention by other ways than the interface, or let tokens of a packed row
touch each other elsewhere (convolutions, pooled statistics, positions counted from the row's
start). Loading cannot see that; comparing logits can. Knows nothing of any architecture.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle

import torch

from engine.errors import ModelNotSupportedError
from engine.kv_cache.storage import KVCacheStorage
from engine.model.attention import PAGED_ATTENTION
from engine.model.forward import forward_packed
from engine.model.loader import LoadedModel, set_attention
from kernels.paged_attention import plan_paged_attention

_BLOCK_SIZE = 4
_PROMPT_TOKENS = (21, 14)
_LONGEST_WINDOW_CROSSED = 128
_CHUNK_TOKENS = (9, 1, 6, 2, 40)
# Mean over rows of the relative distance between two ways to the same logits. Rounding alone is
# below; attention to wrong keys or positions moves whole rows by tens of percent.
_LARGEST_DIFFERENCE = {torch.float32: 2e-3, torch.float64: 2e-3}
_LARGEST_DIFFERENCE_HALF = 0.1


@dataclass(frozen=True, slots=True)
class _Share:
    """Rows of one prompt computed in one pass: tokens [start, stop) of prompt `index`."""

    index: int
    start: int
    stop: int


def check_model(loaded: LoadedModel) -> None:
    """Compare packed, paged and chunked passes with the model's own attention.

    Raises:
        ModelNotSupportedError: they differ by more than rounding; names the architecture and
            which of them differ.
    """
    prompts = _prompts(loaded)
    own = _own_logits(loaded, prompts)
    whole = _whole(prompts)
    alone = [_logits(loaded, prompts, [[share]])[0] for share in whole]
    packed = _logits(loaded, prompts, [whole])
    chunked = _logits(loaded, prompts, _in_chunks(whole))
    for what, left, right in (
        ("paged attention and its own attention", alone, own),
        ("two prompts packed and each alone", packed, alone),
        ("a prompt in chunks and at once", chunked, alone),
    ):
        compare_logits(loaded, what, left, right)


@torch.inference_mode()
def trial_logits(loaded: LoadedModel) -> list[torch.Tensor]:
    """Run passes of many packed tokens and of one, as a model in two forms is to be compared by.

    Returns:
        Per prompt, [num_tokens, vocab] float32.
    """
    prompts = _prompts(loaded)
    *most, last = _whole(prompts)
    before = _Share(last.index, 0, last.stop - 1)
    return _logits(loaded, prompts, [[*most, before], [_Share(last.index, before.stop, last.stop)]])


def chunked_logits(loaded: LoadedModel) -> list[torch.Tensor]:
    """Run passes of a few tokens each, of several prompts at once.

    Returns:
        Per prompt, [num_tokens, vocab] float32.
    """
    prompts = _prompts(loaded)
    return _logits(loaded, prompts, _in_chunks(_whole(prompts)))


def compare_logits(
    loaded: LoadedModel, what: str, left: list[torch.Tensor], right: list[torch.Tensor]
) -> None:
    """Compare two ways to the same logits.

    Args:
        loaded: the model, for its name and its dtype's rounding.
        what: the two ways, in words.
        left: per prompt, [num_tokens, vocab] float32.
        right: as `left`, by the other way.

    Raises:
        ModelNotSupportedError: they differ by more than rounding.
    """
    limit = _LARGEST_DIFFERENCE.get(loaded.dtype, _LARGEST_DIFFERENCE_HALF)
    difference = max(_difference(a, b) for a, b in zip(left, right, strict=True))
    if not difference <= limit:
        raise ModelNotSupportedError(
            f"{loaded.name} ({type(loaded.model).__name__}): logits of {what} differ by "
            f"{difference:.2g} of their size, more than rounding's {limit:g}; "
            "its tokens would be wrong."
        )


def _whole(prompts: list[torch.Tensor]) -> list[_Share]:
    return [_Share(index, 0, len(prompt)) for index, prompt in enumerate(prompts)]


def _prompts(loaded: LoadedModel) -> list[torch.Tensor]:
    """Draw prompts, each longer than every window that is short enough to be crossed cheaply."""
    windows = [window for window in loaded.sliding_windows if window is not None]
    crossed = [window for window in windows if window <= _LONGEST_WINDOW_CROSSED]
    extra = max(crossed, default=0)
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(
            loaded.vocab_size, (min(extra + tokens, loaded.max_model_len),), generator=generator
        )
        for tokens in _PROMPT_TOKENS
    ]


@torch.inference_mode()
def _own_logits(loaded: LoadedModel, prompts: list[torch.Tensor]) -> list[torch.Tensor]:
    set_attention(loaded.model, "eager", loaded.name)
    try:
        return [
            loaded.model(input_ids=prompt[None].to(loaded.device), use_cache=False)
            .logits[0]
            .float()
            for prompt in prompts
        ]
    finally:
        set_attention(loaded.model, PAGED_ATTENTION, loaded.name)


def _in_chunks(whole: list[_Share]) -> list[list[_Share]]:
    """Cut the shares so that steps mix chunks, single tokens and different progress."""
    sizes = cycle(_CHUNK_TOKENS)
    steps: list[list[_Share]] = []
    left = whole
    while left:
        step = [
            _Share(share.index, share.start, min(share.start + next(sizes), share.stop))
            for share in left
        ]
        left = [
            _Share(share.index, done.stop, share.stop)
            for share, done in zip(left, step, strict=True)
            if done.stop < share.stop
        ]
        steps.append(step)
    return steps


def _logits(
    loaded: LoadedModel, prompts: list[torch.Tensor], steps: list[list[_Share]]
) -> list[torch.Tensor]:
    """Run `steps` over a fresh cache whose blocks are scattered.

    Returns:
        Per prompt that the steps compute, [num_tokens, vocab] float32.
    """
    longest = max(len(prompt) for prompt in prompts)
    table_size = -(-longest // _BLOCK_SIZE)
    num_blocks = 1 + table_size * len(prompts)
    storage = KVCacheStorage(loaded.layers, num_blocks, _BLOCK_SIZE, loaded.dtype, loaded.device)
    blocks = torch.arange(1, num_blocks, dtype=torch.int32)
    tables = blocks.view(table_size, len(prompts)).T.contiguous()
    found: dict[int, list[torch.Tensor]] = {}
    for shares in steps:
        logits = _one_step(loaded, storage, prompts, tables, shares)
        lengths = [share.stop - share.start for share in shares]
        for share, rows in zip(shares, logits.split(lengths), strict=True):
            found.setdefault(share.index, []).append(rows)
    return [torch.cat(rows) for _, rows in sorted(found.items())]


def _one_step(
    loaded: LoadedModel,
    storage: KVCacheStorage,
    prompts: list[torch.Tensor],
    tables: torch.Tensor,
    shares: list[_Share],
) -> torch.Tensor:
    positions = [torch.arange(share.start, share.stop) for share in shares]
    slots = [
        tables[share.index][own // _BLOCK_SIZE].long() * _BLOCK_SIZE + own % _BLOCK_SIZE
        for share, own in zip(shares, positions, strict=True)
    ]
    lengths = torch.tensor([0, *(len(own) for own in positions)])
    plan = plan_paged_attention(
        tables[[share.index for share in shares]],
        lengths.cumsum(0),
        torch.tensor([share.stop for share in shares]),
        _BLOCK_SIZE,
        device=loaded.device,
        dtype=loaded.dtype,
    )
    token_ids = torch.cat([prompts[share.index][share.start : share.stop] for share in shares])
    return forward_packed(
        loaded,
        storage,
        token_ids.to(loaded.device),
        torch.cat(positions).to(loaded.device),
        torch.cat(slots).to(loaded.device),
        plan,
        torch.arange(len(token_ids), device=loaded.device),
    )


def _difference(left: torch.Tensor, right: torch.Tensor) -> float:
    distance = (left - right).norm(dim=-1)
    return float((distance / right.norm(dim=-1).clamp_min(1e-12)).mean())
