"""What a plain completion adds step by step: first what is told of the prompt, then the answer.

What is told of a prompt comes before the answers to it, and whole: where the engine is still
scoring the prompt, the answers wait.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

from engine.request import FinishReason, TokenLogprobs
from server.generation import ChoiceDelta, Generation
from server.prompts import Prompt
from server.protocol.provenance import Pass


@dataclass(frozen=True, slots=True)
class Opening:
    """What a choice begins with.

    Attributes:
        prompt: that the choice continues.
        scores: log probabilities of the prompt's tokens from the second on; empty when not wanted.
    """

    prompt: Prompt
    scores: Sequence[TokenLogprobs]


@dataclass(frozen=True, slots=True)
class CompletionDelta:
    """What a step added to a choice: its opening, or tokens.

    Attributes:
        index: of the choice, prompt by prompt.
        opening: on the choice's first delta, if openings are wanted.
        tokens: on the others.
    """

    index: int
    opening: Opening | None = None
    tokens: ChoiceDelta | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell: text is still held back."""
        if self.opening is not None or self.tokens is None:
            return self.opening is None
        has_text = any(self.tokens.pieces)
        has_news = self.tokens.finish_reason is not None or self.tokens.logprobs or self.passes
        return not has_text and not has_news

    @property
    def passes(self) -> Sequence[Pass]:
        """Where tokens come from; see `ChoiceDelta`."""
        return () if self.tokens is None else self.tokens.passes


@dataclass(slots=True)
class CollectedCompletion:
    """One whole choice."""

    index: int
    opening: Opening | None = None
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    token_offsets: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    @property
    def text(self) -> str:
        """The text of the answer."""
        return "".join(self.texts)

    @property
    def mean_logprob(self) -> float:
        """Log probability per token of the answer; 0 without tokens."""
        total = sum(entry.logprob for entry in self.logprobs)
        return total / len(self.logprobs) if self.logprobs else 0.0

    def add(self, delta: CompletionDelta, /) -> None:
        """Add what a stream would have sent."""
        self.opening = self.opening or delta.opening
        if delta.tokens is None:
            return
        self.texts += delta.tokens.pieces
        self.token_ids += delta.tokens.token_ids
        self.logprobs += delta.tokens.logprobs or []
        self.token_offsets += delta.tokens.token_offsets
        self.finish_reason = delta.tokens.finish_reason
        self.stop_reason = delta.tokens.stop_reason


class CompletionDeltas:
    """The deltas of a completion in the order in which they are told.

    Args:
        generation: the choices.
        prompts: as many choices belong to each of them.
        has_openings: whether anything is told of the prompts.
        has_scores: whether that is log probabilities.
    """

    def __init__(
        self,
        generation: Generation,
        prompts: Sequence[Prompt],
        *,
        has_openings: bool,
        has_scores: bool,
    ) -> None:
        self._generation = generation
        self._num_each = generation.num_choices // len(prompts)
        self._has_openings = has_openings
        self._gates = [
            _Gate(prompt, range(place * self._num_each, (place + 1) * self._num_each), has_scores)
            for place, prompt in enumerate(prompts)
        ]

    async def __aiter__(self) -> AsyncIterator[CompletionDelta]:
        if not self._has_openings:
            async for tokens in self._generation:
                yield CompletionDelta(tokens.index, tokens=tokens)
            return
        for gate in self._gates:
            for delta in gate.open():
                yield delta
        async for tokens in self._generation:
            for delta in self._gates[tokens.index // self._num_each].take(tokens):
                yield delta
        assert all(gate.is_open for gate in self._gates), "prompts are scored before they end"


class _Gate:
    """Holds the choices of one prompt back until the prompt is scored."""

    def __init__(self, prompt: Prompt, indices: range, has_scores: bool) -> None:
        self.is_open = False
        self._prompt = prompt
        self._indices = indices
        self._scores: list[TokenLogprobs] = []
        # Nothing comes before the first token, so it has no score.
        self._num_awaited = len(prompt.token_ids) - 1 if has_scores else 0
        self._held: list[ChoiceDelta] = []

    def take(self, tokens: ChoiceDelta) -> Iterator[CompletionDelta]:
        if self.is_open:
            yield CompletionDelta(tokens.index, tokens=tokens)
            return
        self._held.append(tokens)
        self._scores += tokens.prompt_logprobs or []
        yield from self.open()

    def open(self) -> Iterator[CompletionDelta]:
        """Give the openings and what was held back, once the prompt is scored."""
        if len(self._scores) < self._num_awaited:
            return
        self.is_open = True
        opening = Opening(self._prompt, self._scores)
        for index in self._indices:
            yield CompletionDelta(index, opening=opening)
        for tokens in self._held:
            yield CompletionDelta(tokens.index, tokens=tokens)
        self._held = []
