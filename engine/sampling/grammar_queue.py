"""Requests whose grammar is still being compiled; they wait here, outside the scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait

from engine.errors import OutdraftError
from engine.request import Request
from engine.sampling.grammar_compiler import CompiledGrammar, GrammarCompiler


class GrammarQueue:
    """Holds requests until their grammar is there.

    Args:
        compiler: compiles in the background.
    """

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        self._held: dict[str, tuple[Request, Future[CompiledGrammar]]] = {}

    def __len__(self) -> int:
        return len(self._held)

    @property
    def num_background(self) -> int:
        """How many of them are background work."""
        return sum(request.is_background for request, _ in self._held.values())

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._held

    def hold(self, request: Request) -> None:
        """Take in a request that has a grammar, and start compiling it."""
        shape = request.params.structured_output
        assert shape is not None, "only constrained requests wait for a grammar"
        self._held[request.request_id] = (request, self._compiler.compile(shape))

    def drop(self, request_id: str) -> Request | None:
        """Give up waiting; None if nobody waits under this id."""
        held = self._held.pop(request_id, None)
        return None if held is None else held[0]

    def release(self, wait_s: float = 0.0) -> Iterator[tuple[Request, CompiledGrammar | str]]:
        """Give up those whose grammar is there, each with it or with why there is none.

        Args:
            wait_s: how long to wait for the first of them, in seconds.
        """
        if not self._held:
            return
        futures = {future for _, future in self._held.values()}
        done, _ = wait(futures, timeout=wait_s, return_when=FIRST_COMPLETED)
        ready = [name for name, (_, future) in self._held.items() if future in done]
        for name in ready:
            request, future = self._held.pop(name)
            error = future.exception()
            if error is None:
                yield request, future.result()
            elif isinstance(error, OutdraftError):
                yield request, str(error)
            else:
                yield request, f"The grammar cannot be compiled ({type(error).__name__}: {error})."
