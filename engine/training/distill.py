"""Teaches the draft the target's distribution.

Knows the distillation loss and how a draft begins. Refuses to know how text was made: rollouts
and real text arrive as one stream. Losses: DistillSpec (Zhou et al. 2310.08461), section 4, for
KL on the target's own outputs; the accepted mass, 1 - TV, is what verification rewards.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM

from engine.training.packing import RowStream
from engine.training.trainer import Plan, Trainer

KL_WEIGHT = 0.5


def distillation_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Mean of KL_WEIGHT * KL(teacher || student) - log(1 - TV) over the valid rows.

    Args:
        student: Logits of the draft, [..., vocab].
        teacher: Logits of the target, [..., vocab].
        valid: Which rows count, bool [...].
    """
    log_q = functional.log_softmax(student.float(), dim=-1)
    log_p = functional.log_softmax(teacher.float(), dim=-1)
    p = log_p.exp()
    divergence = (p * (log_p - log_q)).sum(-1)
    accepted = torch.minimum(p, log_q.exp()).sum(-1)
    losses = KL_WEIGHT * divergence - accepted.clamp_min(1e-6).log()
    return (losses * valid).sum() / valid.sum()


def teacher_loss(teacher: nn.Module) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """Give a trainer's loss function that compares the student with `teacher` on each row."""

    def loss(student: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            expected = teacher(input_ids=inputs, use_cache=False).logits
        logits = student(input_ids=inputs, use_cache=False).logits
        return distillation_loss(logits, expected, labels >= 0)

    return loss


@torch.no_grad()
def adopt_embeddings(draft: LlamaForCausalLM, target: LlamaForCausalLM) -> None:
    """Start the draft from the target's embeddings and last norm where the widths agree."""
    if draft.config.hidden_size == target.config.hidden_size:
        draft.model.embed_tokens.weight.copy_(target.model.embed_tokens.weight)
        draft.model.norm.weight.copy_(target.model.norm.weight)


def mixed_documents(
    rollouts: list[list[int]], real: list[list[int]], real_share: float = 0.5
) -> Callable[[int], list[list[int]]]:
    """Give the epochs of distillation: every rollout, and about `real_share` of real tokens.

    Each epoch takes the next real documents, in turn.
    """
    mean_length = sum(map(len, real)) / len(real)
    wanted_tokens = sum(map(len, rollouts)) * real_share / (1 - real_share)
    count = round(wanted_tokens / mean_length)

    def epoch_documents(epoch: int) -> list[list[int]]:
        turn = range(epoch * count, (epoch + 1) * count)
        return [*rollouts, *(real[i % len(real)] for i in turn)]

    return epoch_documents


def distill(
    draft: LlamaForCausalLM,
    target: LlamaForCausalLM,
    epoch_documents: Callable[[int], list[list[int]]],
    plan: Plan,
    folder: Path,
    seed: int,
    report: Callable[[Trainer], None] = lambda trainer: None,
) -> None:
    """Train `draft` in place on the target's distributions over the documents' tokens."""
    target.eval().requires_grad_(False)
    stream = RowStream(epoch_documents, seed)
    Trainer(draft, stream, teacher_loss(target), plan, folder, report).run()
