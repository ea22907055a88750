"""All parts of stage 2, those that tell most first."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu import (
    attention_kernels,
    ceiling_part,
    controller,
    decode,
    linear_kernels,
    other_shapes,
    peers,
    prefill,
    sampling_kernels,
    small_kernels,
    throughput,
)
from benchmarks.gpu.part import Part

PARTS: tuple[Part, ...] = (
    Part("ceilings", 4, ceiling_part.run),
    Part("decode", 30, decode.run),
    Part("throughput.plain", 45, throughput.run_plain),
    Part("throughput.synthetic", 70, throughput.run_synthetic),
    Part("kernels.attention", 30, attention_kernels.run),
    Part("kernels.sampling", 10, sampling_kernels.run),
    Part("kernels.linear", 25, linear_kernels.run),
    Part("kernels.small", 15, small_kernels.run),
    Part("throughput.auto", 120, controller.run),
    Part("prefill", 20, prefill.run),
    Part("peers", 80, peers.run),
    Part("shapes.small", 15, other_shapes.run_small),
    Part("shapes.large", 45, other_shapes.run_large),
    Part("peers.compiled", 60, peers.run_compiled),
)


def chosen(words: Sequence[str], parts: Sequence[Part] = PARTS) -> list[Part]:
    """Give the parts of these names, in order; all of a kind by the word before the dot.

    Raises:
        ValueError: a word names nothing.
    """
    for word in words:
        if not any(_is_named(part, word) for part in parts):
            names = ", ".join(part.name for part in parts)
            raise ValueError(f"only: {word!r} is none of {names}.")
    return [p for p in parts if not words or any(_is_named(p, word) for word in words)]


def _is_named(part: Part, word: str) -> bool:
    return part.name == word or part.name.startswith(f"{word}.")
