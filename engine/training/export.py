"""Writes the finished pair: two complete local model folders and a model card.

Knows file formats and the card's words. Refuses to know how the models came to be.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from engine.training.card import CardFacts, model_card
from engine.training.model import place
from engine.training.tokenizer import END_OF_TEXT_ID, IM_END_ID, PAD_ID


def export_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save `model` in float16 with tokenizer, chat template and generation config."""
    model.generation_config = GenerationConfig(
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=[IM_END_ID, END_OF_TEXT_ID],
        pad_token_id=PAD_ID,
    )
    place(model, torch.device("cpu"), torch.float16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def export_pair(
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    facts: CardFacts,
    output: Path,
) -> None:
    """Write `target/`, `draft/`, `README.md` and `evaluation.json` under `output`."""
    export_model(target, tokenizer, output / "target")
    export_model(draft, tokenizer, output / "draft")
    (output / "README.md").write_text(model_card(facts), encoding="utf-8")
    text = json.dumps(asdict(facts), indent=2, ensure_ascii=False) + "\n"
    (output / "evaluation.json").write_text(text, encoding="utf-8")
