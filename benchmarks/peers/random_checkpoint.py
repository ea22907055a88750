"""`python -m benchmarks.peers checkpoint`: a Llama with random weights that every peer can load.

Its vocabulary is the 256 bytes and pairs of them, so any text can be encoded and any peer finds a
tokenizer of the usual kind. What the model writes means nothing; what it costs is real.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_SPECIAL = ("<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a Llama; the defaults are those of a model of 125M parameters.

    Attributes:
        num_layers: decoder layers.
        hidden_size: of the residual stream.
        num_heads: of queries, keys and values.
        intermediate_size: of the feed-forward part.
        vocab_size: tokens; at least 260.
        max_positions: tokens of prompt and answer at most.
    """

    num_layers: int = 12
    hidden_size: int = 768
    num_heads: int = 12
    intermediate_size: int = 2560
    vocab_size: int = 32000
    max_positions: int = 2048


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the program's flags."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the checkpoint goes")
    shape = Shape()
    for name in Shape.__slots__:
        flag, value = f"--{name.replace('_', '-')}", getattr(shape, name)
        parser.add_argument(flag, type=int, default=value, help=f"default: {value}")


def run(args: argparse.Namespace) -> int:
    """Write it."""
    shape = Shape(**{name: getattr(args, name) for name in Shape.__slots__})
    num_parameters = write_checkpoint(args.folder, shape)
    sys.stdout.write(f"written: {args.folder}, {num_parameters / 1e6:.0f}M parameters\n")
    return 0


def write_checkpoint(folder: Path, shape: Shape) -> int:
    """Write weights, configuration and tokenizer, the same whenever they are written.

    Args:
        folder: where they go.
        shape: of the model.

    Returns:
        Its number of parameters.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        max_position_embeddings=shape.max_positions,
        # Wider than usual, so that greedy answers do not hang on rounding.
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=3,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).half()
    model.save_pretrained(folder)
    byte_pair_tokenizer(shape.vocab_size).save_pretrained(folder)
    return int(model.num_parameters())


def byte_pair_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Make a byte-level tokenizer: special tokens, all bytes, then pairs of bytes in order."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    num_pairs = vocab_size - len(_SPECIAL) - len(alphabet)
    merges = list(islice(product(alphabet, alphabet), num_pairs))
    tokens = [*_SPECIAL, *alphabet, *("".join(pair) for pair in merges)]
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_SPECIAL[0],
        bos_token=_SPECIAL[1],
        eos_token=_SPECIAL[3],
    )
