"""Pretrains a model of the pair on the rendered corpora.

Knows the next-token loss and how epochs are rendered. Refuses to know distillation.
"""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from engine.training.data import Record, training_documents
from engine.training.packing import IGNORE_LABEL, RowStream
from engine.training.tokenizer import encode_documents
from engine.training.trainer import Plan, Trainer


def next_token_loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats per token of `labels` [batch, length] given `inputs`."""
    logits = model(input_ids=inputs, use_cache=False).logits  # [batch, length, vocab]
    return functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE_LABEL
    )


def epoch_encoder(
    records: list[Record], tokenizer: PreTrainedTokenizerBase, seed: int
) -> Callable[[int], list[list[int]]]:
    """Give the function that renders and encodes the training records of an epoch."""

    def encode(epoch: int) -> list[list[int]]:
        return encode_documents(tokenizer, training_documents(records, seed + epoch))

    return encode


def pretrain(
    model: LlamaForCausalLM,
    epoch_documents: Callable[[int], list[list[int]]],
    plan: Plan,
    folder: Path,
    seed: int,
    report: Callable[[Trainer], None] = lambda trainer: None,
) -> None:
    """Train `model` in place on the epochs' documents; resumes from `folder`."""
    stream = RowStream(epoch_documents, seed)
    Trainer(model, stream, next_token_loss, plan, folder, report).run()
