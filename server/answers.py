"""Answers on the wire: what chat and plain completions have in common.

An answer that is not streamed is the stream, collected.
"""

from __future__ import annotations

import abc
import time
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from server.generation import Generation
from server.protocol.provenance import Pass
from server.protocol.sampling import SamplingFields
from server.protocol.usage import Usage
from server.sampling import wants_speculation_report
from server.served import Served

Event = Mapping[str, Any]


class Delta(Protocol):
    """What a step added to a choice."""

    @property
    def index(self) -> int: ...

    @property
    def is_empty(self) -> bool: ...

    @property
    def passes(self) -> Sequence[Pass]: ...


DeltaT = TypeVar("DeltaT", bound=Delta)
DeltaT_contra = TypeVar("DeltaT_contra", bound=Delta, contravariant=True)


class Collector(Protocol[DeltaT_contra]):
    """One whole answer, from the deltas of its stream."""

    def add(self, delta: DeltaT_contra, /) -> None: ...


ChoiceT = TypeVar("ChoiceT", bound=Collector[Any])


class Answer(abc.ABC, Generic[DeltaT, ChoiceT]):
    """One call's answer; subclasses give the shapes.

    Args:
        served: what is served.
        body: the request.
        generation: the answer's choices.

    Attributes:
        generation: the answer's choices; leave its context when done.
    """

    stream_object: str
    whole_object: str

    def __init__(self, served: Served, body: SamplingFields, generation: Generation) -> None:
        self.generation = generation
        self._tokens = served.tokens
        options = body.stream_options
        self._has_usage = bool(options and options.include_usage)
        self._has_running_usage = bool(options and options.continuous_usage_stats)
        self._has_report = generation.is_synthetic or wants_speculation_report(body)
        self._head: dict[str, Any] = {
            "id": generation.call_id,
            "created": int(time.time()),
            "model": served.check_model(body.model),
            "system_fingerprint": served.fingerprint,
        }

    async def stream(self) -> AsyncIterator[Event]:
        """Give the events of the streamed answer, the usage last when it was asked for."""
        for index in range(self.generation.num_choices):
            for choice in self._opening(index):
                yield self._chunk(choice)
        async for delta in self._deltas():
            if delta.is_empty:
                continue
            chunk = self._chunk(self._addition(delta))
            if delta.passes:
                chunk["provenance"] = {"index": delta.index, "passes": delta.passes}
            if self.generation.is_finished and not self._has_usage:
                chunk |= self._report()
            yield chunk
        if self._has_usage:
            yield self._chunk() | {"usage": self._usage()} | self._report()

    async def collect(self) -> Event:
        """Give the answer whole."""
        choices = [self._new_choice(index) for index in range(self.generation.num_choices)]
        async for delta in self._deltas():
            choices[delta.index].add(delta)
        return self._whole_answer(choices)

    @abc.abstractmethod
    def _deltas(self) -> AsyncIterable[DeltaT]:
        """Give what each step added."""

    @abc.abstractmethod
    def _new_choice(self, index: int) -> ChoiceT:
        """Give what collects a choice."""

    @abc.abstractmethod
    def _opening(self, index: int) -> Sequence[Event]:
        """Give what a choice begins with, before its first token."""

    @abc.abstractmethod
    def _addition(self, delta: DeltaT) -> Event:
        """Give what a step added to a choice."""

    @abc.abstractmethod
    def _whole(self, choice: ChoiceT) -> Event:
        """Give a choice, whole."""

    def _usage(self) -> Usage:
        return self.generation.usage

    def _whole_answer(self, choices: Sequence[ChoiceT]) -> dict[str, Any]:
        return {
            **self._head,
            "object": self.whole_object,
            "choices": [self._whole(choice) for choice in choices],
            "usage": self._usage(),
            **self._report(),
        }

    def _report(self) -> dict[str, Any]:
        """Give how speculation went, if that was asked for or has to be said."""
        return {"metrics": self.generation.speculation} if self._has_report else {}

    def _chunk(self, *choices: Event) -> dict[str, Any]:
        chunk: dict[str, Any] = {**self._head, "object": self.stream_object, "choices": choices}
        if self._has_usage:
            chunk["usage"] = self._usage() if self._has_running_usage else None
        return chunk
