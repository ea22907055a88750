"""Makes a draft that is of no use: the shape and tokenizer of another, with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def write_random_draft(draft: str, folder: Path | str) -> str:
    """Write it, the same whenever it is written.

    Args:
        draft: hub id or folder of the draft that it resembles.
        folder: where it goes, in a folder of its own.

    Returns:
        Its folder.
    """
    torch.manual_seed(0)
    path = str(Path(folder) / "random-draft")
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(draft)).save_pretrained(path)
    AutoTokenizer.from_pretrained(draft).save_pretrained(path)
    return path
