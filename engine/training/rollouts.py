"""Collects the target's own outputs, the text the draft will be asked about.

Knows how prompts are cut from training records and how draws are stored and continued after a
stop. Refuses to know the draft.
"""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from engine.training.data import Document, Record, training_documents
from engine.training.sampling import sample
from engine.training.tokenizer import IM_START, render

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """The budget of on-policy generation.

    Attributes:
        max_minutes: Wall-clock budget of one call; None means no such bound.
        max_sequences: Number of outputs to collect.
        batch: Prompts decoded together.
        num_tokens: Tokens drawn per prompt.
        max_prompt_tokens: Longer prompts are not used.
        temperatures: Drawn from at random per batch; repeats weigh.
    """

    max_minutes: float | None = None
    max_sequences: int = 20_000
    batch: int = 64
    num_tokens: int = 128
    max_prompt_tokens: int = 160
    temperatures: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 0.7, 0.0)


def assistant_prompt(document: Document, rng: random.Random) -> str | None:
    """Cut a chat before one of its assistant turns; None for plain text or a silent assistant."""
    starts = [i for i, m in enumerate(document.messages) if m["role"] == "assistant" and i > 0]
    if not starts:
        return None
    before = Document(document.messages[: rng.choice(starts)])
    return f"{render(before)}{IM_START}assistant\n"


def draw_prompts(
    records: list[Record], tokenizer: PreTrainedTokenizerBase, plan: RolloutPlan, seed: int
) -> list[list[int]]:
    """Give encoded prompts from training records, short enough, sorted inside large chunks.

    Neighbours have nearly equal lengths, so a batch of them pads little.
    """
    rng = random.Random(seed)
    texts = (assistant_prompt(d, rng) for d in training_documents(records, seed))
    encoded: list[list[int]] = tokenizer(
        [t for t in texts if t is not None], add_special_tokens=False
    )["input_ids"]
    short = [ids for ids in encoded if len(ids) <= plan.max_prompt_tokens]
    short.sort(key=len)
    batches = [short[i : i + plan.batch] for i in range(0, len(short), plan.batch)]
    rng.shuffle(batches)
    return [ids for batch in batches for ids in batch]


def collect_rollouts(
    target: LlamaForCausalLM,
    prompts: list[list[int]],
    plan: RolloutPlan,
    path: Path,
    seed: int,
    report: Callable[[float], None] = lambda fraction: None,
) -> list[list[int]]:
    """Draw outputs until a budget or the prompts are spent; every batch is saved to `path`."""
    rows: list[list[int]] = torch.load(path) if path.exists() else []
    started = time.monotonic()
    wanted = min(plan.max_sequences, len(prompts))
    while len(rows) < wanted:
        spent = (time.monotonic() - started) / 60
        if plan.max_minutes is not None and spent >= plan.max_minutes:
            break
        index = len(rows) // plan.batch
        chosen = prompts[len(rows) : len(rows) + plan.batch]
        temperature = random.Random(seed + index).choice(plan.temperatures)
        drawn = sample(target, chosen, plan.num_tokens, temperature, seed + index)
        rows += [[*p, *d] for p, d in zip(chosen, drawn.tolist(), strict=True)]
        _save(rows, path)
        report(max(len(rows) / wanted, spent / plan.max_minutes if plan.max_minutes else 0.0))
    logger.info("rollouts=%d tokens=%d", len(rows), sum(map(len, rows)))
    return rows


def _save(rows: list[list[int]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(rows, partial)
    partial.replace(path)
