"""What a comparison and its workers say to each other: JSON, a line each, over stdin and stdout.

A worker loads once, then answers one run after the other, and is blocked on stdin in between. It
is run by the peer's own Python, so this imports the standard library alone. Whatever a peer prints
goes to stderr; stdout belongs to the protocol.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import IO, Any, Protocol

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a worker loads.

    Attributes:
        model: folder of the target.
        draft: folder of a draft model; None = there is none.
        dtype: of weights and KV cache, `float32` or `bfloat16`.
        threads: CPU threads.
        way: which of the peer's ways.
        max_concurrency: requests in flight at most.
        max_model_len: tokens of prompt and answer at most.
        num_draft_tokens: drafts per pass, where the peer does not choose.
    """

    model: str
    draft: str | None
    dtype: str
    threads: int
    way: str
    max_concurrency: int
    max_model_len: int
    num_draft_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Requests that are answered at once, or as many at a time as `concurrency` says.

    Attributes:
        prompts: token ids.
        max_tokens: tokens of every answer; nothing else ends one.
        temperature: 0 = greedy.
        seed: of the first request, where tokens are drawn; the next ones count on.
        concurrency: requests in flight.
    """

    prompts: list[list[int]]
    max_tokens: int
    temperature: float
    seed: int
    concurrency: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a worker says once it has loaded.

    Attributes:
        seconds: that loading took.
        versions: of the packages that count, by name.
        settings: with which the peer runs, by name.
    """

    seconds: float
    versions: dict[str, str]
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a run wrote.

    Attributes:
        seconds: from the first request's start to the last one's end.
        token_ids: of every answer, in the order of the prompts.
    """

    seconds: float
    token_ids: list[list[int]]


class Engine(Protocol):
    """A peer that has loaded."""

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the packages that count."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """Settings with which it runs."""
        ...

    def run(self, run: Run) -> list[list[int]]:
        """Answer every prompt; returns token ids in the order of the prompts."""
        ...


def work(load: Callable[[Load], Engine]) -> None:
    """Serve lines of stdin until it is closed.

    Args:
        load: makes the peer.
    """
    _end_with_parent()
    with _own_stdout() as answers:
        engine: Engine | None = None
        for line in sys.stdin:
            words = json.loads(line)
            verb = words.pop("do")
            try:
                started = time.perf_counter()
                if verb == "load":
                    engine = load(Load(**words))
                    seconds = time.perf_counter() - started
                    said: Any = Loaded(
                        seconds=seconds, versions=engine.versions, settings=engine.settings
                    )
                else:
                    assert verb == "run", f"{verb!r} is no verb"
                    assert engine is not None, "nothing has been loaded"
                    token_ids = engine.run(Run(**words))
                    said = Answers(seconds=time.perf_counter() - started, token_ids=token_ids)
                reply: dict[str, Any] = {"ok": asdict(said)}
            except Exception as error:
                # The peer's failure is told to whoever asked; the whole of it goes to the log.
                traceback.print_exc()
                reply = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(reply), file=answers, flush=True)


def _end_with_parent() -> None:
    """Be killed where the parent dies, since a worker that is stopped would never see its end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _own_stdout() -> IO[str]:
    """Keep stdout for the protocol; what anybody prints from here on goes to stderr."""
    sys.stdout.flush()
    kept = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return kept
