"""Measures a pair: losses on held-out text and how often the draft foresees the target.

Knows held-out documents and teacher-forced estimates. Refuses to know the serving engine, which
measures the same quantities for real.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from engine.training.packing import IGNORE_LABEL, to_batch
from engine.training.sampling import choose, continuation_logits, gumbel, sample
from engine.training.tokenizer import END_OF_TEXT_ID, IM_END_ID

ROWS_PER_BATCH = 16
MAX_EVALUATED_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class TextLoss:
    """Loss on real text: nats per token, and per UTF-8 byte for comparing tokenizers."""

    nats_per_token: float
    nats_per_byte: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a draft meets a target on the target's own outputs.

    Attributes:
        temperature: Sampling temperature of both.
        acceptance: Share of target tokens that the draft, with the same noise, names.
        optimum: Mean of 1 - TV, the most any drafter with this draft could reach.
        tokens_per_pass: Tokens per target pass when `num_drafts` are proposed each time.
        num_drafts: Draft tokens per pass.
        num_tokens: Target tokens measured.
    """

    temperature: float
    acceptance: float
    optimum: float
    tokens_per_pass: float
    num_drafts: int
    num_tokens: int


@torch.no_grad()
def text_loss(model: LlamaForCausalLM, encoded: list[list[int]], num_bytes: int) -> TextLoss:
    """Measure the next-token loss on documents; `num_bytes` is the size of their text."""
    ordered = sorted((ids[:MAX_EVALUATED_TOKENS] for ids in encoded), key=len)
    nats, num_tokens = 0.0, 0
    for start in range(0, len(ordered), ROWS_PER_BATCH):
        rows = ordered[start : start + ROWS_PER_BATCH]
        inputs, labels = to_batch(rows, max(map(len, rows)))
        logits = model(input_ids=inputs.to(model.device), use_cache=False).logits
        nats += functional.cross_entropy(
            logits.float().flatten(0, 1),
            labels.flatten().to(model.device),
            ignore_index=IGNORE_LABEL,
            reduction="sum",
        ).item()
        num_tokens += int((labels >= 0).sum())
    return TextLoss(nats / num_tokens, nats / num_bytes, num_tokens)


def tokens_per_pass(matches: list[bool], num_drafts: int) -> float:
    """Walk one output: each pass emits the matching drafts and one token of the target's own."""
    position, passes = 0, 0
    while position < len(matches):
        window = matches[position : position + num_drafts]
        position += (window.index(False) if False in window else len(window)) + 1
        passes += 1
    return len(matches) / passes if passes else 0.0


@torch.no_grad()
def measure_agreement(
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM,
    prompts: list[list[int]],
    temperature: float,
    num_tokens: int = 64,
    num_drafts: int = 4,
    seed: int = 1,
) -> Agreement:
    """Draw the target's outputs for `prompts` and compare the draft's choices, noise shared."""
    matches: list[list[bool]] = []
    overlaps: list[Tensor] = []
    vocab = target.config.vocab_size
    for start in range(0, len(prompts), ROWS_PER_BATCH):
        rows = prompts[start : start + ROWS_PER_BATCH]
        batch_seed = seed + start
        drawn = sample(target, rows, num_tokens, temperature, batch_seed)
        ours = continuation_logits(draft, rows, drawn)  # [rows, num_tokens, vocab]
        theirs = continuation_logits(target, rows, drawn)
        noise = [gumbel(len(rows), vocab, batch_seed, s) for s in range(num_tokens)]
        same = choose(ours, temperature, torch.stack(noise, dim=1)).cpu() == drawn
        heat = temperature or 1.0
        overlap = torch.minimum((ours / heat).softmax(-1), (theirs / heat).softmax(-1)).sum(-1)
        for i, length in enumerate(output_lengths(drawn)):
            matches.append(same[i, :length].tolist())
            overlaps.append(overlap[i, :length].cpu())
    total = sum(map(len, matches))
    passes = sum(len(m) / tokens_per_pass(m, num_drafts) for m in matches)
    return Agreement(
        temperature=temperature,
        acceptance=sum(map(sum, matches)) / total,
        optimum=torch.cat(overlaps).mean().item(),
        tokens_per_pass=total / passes,
        num_drafts=num_drafts,
        num_tokens=total,
    )


def output_lengths(drawn: Tensor) -> list[int]:
    """Give the length of each output [num_prompts, num_tokens] up to and with its end token."""
    ends = (drawn == IM_END_ID) | (drawn == END_OF_TEXT_ID)
    first = torch.where(ends.any(1), ends.int().argmax(1) + 1, drawn.shape[1])
    return [int(n) for n in first]
