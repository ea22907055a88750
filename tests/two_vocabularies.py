"""Tokenizers trained on the spot, models that know one text by heart, and a core around a pair."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from engine.config import EngineConfig
from engine.config_files import apply_options
from engine.core import EngineCore
from engine.kv_cache.storage import bytes_per_block
from engine.model.loader import LoadedModel, from_model
from engine.model_pair import ModelPair
from engine.speculative.draft_texts import DraftTexts
from engine.vocabularies import Vocabulary, choose_vocabulary
from tests.tiny_models import tiny_llama

SPECIALS = ["<pad>", "<s>", "</s>"]
_CORPUS = Path(__file__).resolve().parent.parent / "LICENSE"
TEXT = (
    "The small model writes a draft, and the large one reads it. Where both agree, the words are "
    "kept; where they differ, the large one has its way. Naïve café owners pay 12 € for it! "
)


@cache
def byte_level(vocab_size: int = 400, part: int = 0) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on one half of the licence."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _train(backend, vocab_size, part, SPECIALS, initial_alphabet=sorted(alphabet))


@cache
def sentencepiece(vocab_size: int = 420) -> PreTrainedTokenizerFast:
    """Train BPE in the way of sentencepiece: U+2581 for spaces, bytes where nothing else fits."""
    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    pieces = [*SPECIALS, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = _train(backend, vocab_size, 1, pieces, max_token_length=8)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # The trainer knows pieces given in advance as special ones only; bytes are ordinary.
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
    return _wrap(Backend.from_str(json.dumps(state)))


def permuted(tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedTokenizerFast, torch.Tensor]:
    """Give the same tokens other ids.

    Returns:
        The tokenizer, and each old id's new one.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    moved = torch.randperm(len(tokenizer), generator=torch.Generator().manual_seed(3))
    vocab = state["model"]["vocab"]
    state["model"]["vocab"] = {text: int(moved[token_id]) for text, token_id in vocab.items()}
    for token in state["added_tokens"]:
        token["id"] = int(moved[token["id"]])
    state["added_tokens"].sort(key=lambda token: token["id"])
    return _wrap(Backend.from_str(json.dumps(state))), moved


@torch.no_grad()
def with_rows_moved(model: PreTrainedModel, moved: torch.Tensor) -> PreTrainedModel:
    """Move a model's rows of embeddings and logits to new ids, in place."""
    for weight in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        weight[moved] = weight.clone()
    return model


@cache
def by_heart(kind: str, vocab_size: int, *, layers: int = 1) -> PreTrainedModel:
    """Teach a model `TEXT`, over and over, in the tokens of `byte_level` or `sentencepiece`."""
    tokenizer = byte_level(vocab_size) if kind == "byte_level" else sentencepiece(vocab_size)
    model = tiny_llama(5, layers=layers, vocab=len(tokenizer))
    token_ids = torch.tensor([tokenizer.encode(TEXT * 2, add_special_tokens=False)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(120):
        loss = model(input_ids=token_ids, labels=token_ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def foreign_core(
    target: tuple[PreTrainedModel | LoadedModel, PreTrainedTokenizerFast],
    draft: tuple[PreTrainedModel | LoadedModel, PreTrainedTokenizerFast],
    /,
    method: str,
    *,
    num_blocks: int | None = None,
    **options: Any,
) -> EngineCore:
    """Build a core around two models with tokenizers of their own."""
    loaded = [m if isinstance(m, LoadedModel) else from_model(m) for m in (target[0], draft[0])]
    foreign = choose_vocabulary(
        method, Vocabulary(loaded[0], target[1]), Vocabulary(loaded[1], draft[1])
    )
    if num_blocks is not None:
        size = options.setdefault("block_size", 4)
        block_bytes = sum(bytes_per_block(m.layers, size, m.dtype) for m in loaded)
        options["kv_cache_memory"] = str(num_blocks * block_bytes)
    options = {"kv_cache_memory": "64MiB", "draft": "in memory", "speculation": 4} | options
    config = apply_options(EngineConfig(), options)
    return EngineCore(config, ModelPair(loaded[0], loaded[1], lambda: target[1], foreign))


def draft_texts(core: EngineCore) -> DraftTexts:
    """Give the texts that a core's draft of another vocabulary holds."""
    texts: DraftTexts = core._speculation.proposer._model._texts  # type: ignore[attr-defined]
    return texts


def _train(
    backend: Backend, vocab_size: int, part: int, specials: list[str], **options: Any
) -> PreTrainedTokenizerFast:
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=specials, show_progress=False, **options
    )
    lines = _CORPUS.read_text(encoding="utf-8").splitlines(keepends=True)
    backend.train_from_iterator([*lines[part::2], TEXT], trainer)
    return _wrap(backend)


def _wrap(backend: Backend) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
