"""What rows of logits are sampled with, as tensors on the device, and what comes of it.

Everything about a request lies in a slot of its own, so that a CUDA graph can be replayed while
requests come and go; which kinds of change occur at all is known to the host. Knows tensors and
nothing of requests, and reads no tensor back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class SampleRows:
    """How each row of logits becomes a token.

    R rows, S slots. Row r samples the token at position `num_tokens[slots[r]] + offsets[r]` behind
    the first `offsets[r]` drafts of its slot. Padding rows point to a scratch slot of valid
    settings; whatever they sample is read by nobody.

    Attributes:
        vocab_size: tokens that can be chosen; wider logits are cut.
        has_noise: some row may be sampled; False takes every row for greedy.
        has_filters: some row may have top-k, top-p or min-p; False ignores them.
        slots: [R] int32.
        offsets: [R] int32, drafts in front of the sampled token.
        num_tokens: [S] int64, known tokens.
        temperature: [S] float32; 0 is greedy, and skips filters and noise. Store the smallest
            normal float32 for what is smaller and not 0.
        top_k: [S] int32, 0 keeps all.
        top_p: [S] float64, as the pipeline compares it; 1 keeps all.
        min_p: [S] float32, 0 keeps all.
        seed: [S] int64, the bits of the unsigned seed.
        choice: [S] int32.
        penalty_row: [S] int32, the slot's row of `in_prompt` and `output_counts`, -1 for none. None
            where no row has penalties; then the six below are None, too.
        repetition_excess: [S] float32, repetition penalty - 1, subtracted before it is rounded.
        presence: [S] float32.
        frequency: [S] float32.
        in_prompt: [P, >= vocab_size] float32, 1 where the prompt has the token, else 0.
        output_counts: [P, >= vocab_size] float32, how often the answer has it, drafts left out.
        draft_token_ids: [S, K] int64; a row's first `offsets` count as its answer. None where no
            penalised row is behind drafts.
        bias_row: [S] int32, the slot's row of `biases`, -1 for none. None where no row has any.
        biases: [B, >= vocab_size] float32; -inf bans.
        mask_row: [R] int32, the row's own row of `bitmask`, -1 for none. None where no row has any.
        bitmask: [M, >= ceil(vocab_size / 32)] int32, little-endian bits; 0 bans.
    """

    vocab_size: int
    has_noise: bool
    has_filters: bool
    slots: torch.Tensor
    offsets: torch.Tensor
    num_tokens: torch.Tensor
    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seed: torch.Tensor
    choice: torch.Tensor
    penalty_row: torch.Tensor | None = None
    repetition_excess: torch.Tensor | None = None
    presence: torch.Tensor | None = None
    frequency: torch.Tensor | None = None
    in_prompt: torch.Tensor | None = None
    output_counts: torch.Tensor | None = None
    draft_token_ids: torch.Tensor | None = None
    bias_row: torch.Tensor | None = None
    biases: torch.Tensor | None = None
    mask_row: torch.Tensor | None = None
    bitmask: torch.Tensor | None = None

    def check(self, logits: torch.Tensor) -> None:
        """Check shapes and types; values are on the device and stay there.

        Raises:
            ValueError: something does not fit, by name.
        """
        num_rows, width = logits.shape
        if logits.dtype not in _LOGIT_TYPES or (width > 1 and logits.stride(1) != 1):
            raise ValueError(f"logits: {logits.dtype} of strides {logits.stride()} is not served.")
        if not 1 <= self.vocab_size <= width:
            raise ValueError(f"vocab_size: {self.vocab_size} tokens, but logits of {width}.")
        for names in _TOGETHER:
            if len({getattr(self, name) is None for name in names}) > 1:
                raise ValueError(f"{', '.join(names)}: given together or not at all.")
        num_words = -(-self.vocab_size // 32)
        widths = {**dict.fromkeys(_WIDE, self.vocab_size), "bitmask": num_words}
        for name, dtype in _TYPES.items():
            tensor = getattr(self, name)
            if tensor is not None:
                _check_type(name, tensor, dtype, logits.device)
                _check_shape(name, tensor, num_rows, widths.get(name))


def _check_type(name: str, tensor: torch.Tensor, dtype: torch.dtype, device: torch.device) -> None:
    if tensor.dtype != dtype or tensor.device != device:
        raise ValueError(f"{name}: {tensor.dtype} on {tensor.device}, not {dtype} on {device}.")


def _check_shape(name: str, tensor: torch.Tensor, num_rows: int, least: int | None) -> None:
    if name in _PER_ROW and tensor.shape != (num_rows,):
        raise ValueError(f"{name}: {list(tensor.shape)} instead of {num_rows} rows.")
    if least is not None and tensor.shape[1] < least:
        raise ValueError(f"{name}: {list(tensor.shape)} is narrower than {least}.")
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        raise ValueError(f"{name}: its last dimension is not dense.")


@dataclass(frozen=True, slots=True, eq=False)
class SampledRows:
    """The tokens of some rows.

    Attributes:
        token_ids: [R] int64; 0 in invalid rows.
        is_invalid: [R] bool: the processed logits held NaN or +inf, or no token was possible.
        logprobs: [R] float32, of the token under the logits as they came; when asked for.
        ranks: [R] int64, of the token under the logits as they came, 1 for the most likely; when
            asked for.
        margins: [R] float32, lead of the token's score over the next, noise included; inf where
            there is no other, NaN in invalid rows; when asked for.
    """

    token_ids: torch.Tensor
    is_invalid: torch.Tensor
    logprobs: torch.Tensor | None = None
    ranks: torch.Tensor | None = None
    margins: torch.Tensor | None = None


_LOGIT_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_PER_ROW = ("slots", "offsets", "mask_row")
_WIDE = ("in_prompt", "output_counts", "biases")
_TOGETHER = (
    (
        "penalty_row", "repetition_excess", "presence", "frequency", "in_prompt", "output_counts",
    ),
    ("bias_row", "biases"),
    ("mask_row", "bitmask"),
)  # fmt: skip
_TYPES = {
    **dict.fromkeys(("slots", "offsets", "top_k", "choice"), torch.int32),
    **dict.fromkeys(("penalty_row", "bias_row", "mask_row", "bitmask"), torch.int32),
    **dict.fromkeys(("num_tokens", "seed", "draft_token_ids"), torch.int64),
    **dict.fromkeys(("temperature", "min_p", *_WIDE), torch.float32),
    **dict.fromkeys(("repetition_excess", "presence", "frequency"), torch.float32),
    "top_p": torch.float64,
}
