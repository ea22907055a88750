"""Errors raised between the parts of an engine, one at a time: every request still ends once.

The engine's own loop runs in this process over a socket that is none. A fault either leaves the
requests to end as they would have, or with an error; or it ends the engine, which then is told to
every waiter by the client (`tests/engine/test_client.py`, and the phase `crashes`).
"""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
import zmq

import engine.core
from engine.client.engine_process import EngineLoop
from engine.client.messages import (
    AbortRequests,
    AddRequests,
    EngineReady,
    NewRequest,
    StepOutputs,
    StopEngine,
    encoder,
    from_engine_decoder,
)
from engine.core import EngineCore
from engine.door import make_requests
from engine.model.loader import from_model
from engine.request import FinishReason, RequestDelta
from engine.runner.loop_setup import make_decode_loop
from engine.sampling_params import SamplingParams
from engine.structured_output import StructuredOutput
from tests.byte_tokenizer import byte_tokenizer
from tests.chaos.findings import Finding
from tests.chaos.sizes import Sizes
from tests.engine.late_device import LateQueue, RecordedGraphs
from tests.tiny_models import greedy, make_core, seeded, tiny_llama, tokens_of

_VOCAB, _EOS = 258, 256
_MOST_SENT = 3000
_ENDLESS = "the engine does not come to an end"
_ABORTED = "r4-0"
_SHAPE = json.dumps({"type": "object", "properties": {"a": {"enum": ["x", "yy"]}}})
ERRORS: dict[str, Callable[[], Exception]] = {
    "MemoryError": MemoryError,
    "torch.OutOfMemoryError": lambda: torch.OutOfMemoryError("CUDA out of memory."),
    "allocator": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    "RuntimeError": lambda: RuntimeError("an injected fault"),
    "ValueError": lambda: ValueError("an injected fault"),
}
# Where parts call each other: whose attribute of the core, and its methods.
SITES: dict[str, tuple[str, ...]] = {
    "kv": (
        *("admit", "allocate_slots", "block_ids", "free", "is_prefix_pending"),
        *("num_draft_cached_tokens", "publish", "trim"),
    ),
    "scheduler": ("abort", "add", "schedule", "schedule_ahead", "shed", "update"),
    "_runner": ("execute",),
    "_sampler": ("begin", "sample"),
    "_speculation": ("observe", "take_planning", "verify", "evict"),
    "_speculation.proposer": ("propose",),
    "_speculation.proposer._model": ("propose",),
    "_speculation.planner": ("plan", "plans_ahead", "wakes"),
    "_grammars": ("admit", "begin", "evict", "forced_tokens", "masks", "settle"),
    "_grammar_queue": ("hold", "release"),
    "_ledger": ("book", "forget"),
    "_loop": ("collect", "evict", "launch", "takes"),
    "": ("abort", "add_request", "stats"),
}


def run(finding: Finding, sizes: Sizes, rng: random.Random) -> None:
    """Plan the faults, then raise them one by one."""
    with quiet():
        _run(finding, sizes.faults, rng)


def _run(finding: Finding, num_faults: int, rng: random.Random) -> None:
    setups = {name: Setup(name, make) for name, make in _setups().items()}
    possible = [fault for setup in setups.values() for fault in setup.every_fault()]
    rng.shuffle(possible)
    # Every one of them once before any comes again at another call.
    plan = list(islice(cycle(possible), num_faults))
    outcomes: Counter[str] = Counter()
    for fault in plan:
        outcomes[setups[fault.setup].suffer(fault, rng, finding)] += 1
    finding.numbers |= {"kinds of faults": len(possible), "faults": len(plan), **outcomes}
    finding.numbers["cores made"] = sum(setup.num_made for setup in setups.values())
    finding.hold(outcomes["not reached"] < len(plan) / 2, "most faults were not reached")


@dataclass(frozen=True, slots=True)
class Fault:
    """An error at one call.

    Attributes:
        setup: which engine.
        place: whose method, by the way from the core.
        method: its name.
        error: of `ERRORS`.
        num_calls: of the method in an undisturbed run.
    """

    setup: str
    place: str
    method: str
    error: str
    num_calls: int

    def __str__(self) -> str:
        return f"{self.error} in {self.place or 'core'}.{self.method} ({self.setup})"


class NoSocket:
    """Gives an engine's loop its messages at chosen moments, and keeps what it says.

    Args:
        script: messages, and how many of its own messages the engine has sent before.

    Attributes:
        deltas: what was said of each request.
        is_ready: whether the engine said that it is.
    """

    def __init__(self, script: list[tuple[int, Any]]) -> None:
        self.deltas: dict[str, list[RequestDelta]] = {}
        self._script = sorted(script, key=lambda entry: entry[0])
        self._num_sent = 0
        self.is_ready = False

    def send(self, content: bytes) -> None:
        """Keep a message; an engine that talks for ever does not come to an end."""
        message = from_engine_decoder.decode(content)
        self._num_sent += 1
        assert self._num_sent < _MOST_SENT, _ENDLESS
        self.is_ready = self.is_ready or isinstance(message, EngineReady)
        if isinstance(message, StepOutputs):
            for delta in message.deltas:
                self.deltas.setdefault(delta.request_id, []).append(delta)

    def recv(self, _flags: int) -> bytes:
        """Give what is due.

        Raises:
            zmq.Again: nothing is.
        """
        if not self._script or self._script[0][0] > self._num_sent:
            raise zmq.Again
        return encoder.encode(self._script.pop(0)[1])

    def poll(self, _milliseconds: int) -> int:
        """Let a resting engine hear what comes next, and in the end that it is over."""
        _, message = self._script.pop(0) if self._script else (0, StopEngine())
        self._script.insert(0, (0, message))
        return 1


class NoNote:
    """Notes nothing of who is in a step."""

    def write(self, _request_ids: set[str]) -> None:
        """Forget it."""


@dataclass(slots=True)
class Setup:
    """One kind of engine, what it says undisturbed, and how often it calls what.

    Attributes:
        name: see above.
        make: makes its core.
        num_made: cores so far.
    """

    name: str
    make: Callable[[], EngineCore]
    num_made: int = 0
    _core: EngineCore | None = None
    _expected: dict[str, list[int]] = field(default_factory=dict)

    def every_fault(self) -> list[Fault]:
        """Run once undisturbed, and give each error at each method that was called."""
        core = self._living_core()
        socket = NoSocket(script(core))
        with counting(core, socket) as counts:
            serve(core, socket)
        self._expected = {name: tokens_of(deltas) for name, deltas in socket.deltas.items()}
        assert {d[-1].finish_reason for d in socket.deltas.values()} <= {
            FinishReason.LENGTH,
            FinishReason.STOP,
            FinishReason.ABORT,
        }, "an undisturbed engine fails"
        return [
            Fault(self.name, place, method, error, count)
            for (place, method), count in counts.items()
            for error in ERRORS
            if count
        ]

    def suffer(self, fault: Fault, rng: random.Random, finding: Finding) -> str:
        """Raise a fault, and hold the engine to its laws; gives what came of it."""
        core = self._living_core()
        socket = NoSocket(script(core))
        with raising(core, socket, fault, rng.randrange(fault.num_calls)) as raised:
            try:
                serve(core, socket)
            except Exception as error:
                self._core = None
                self._check_ends(socket, fault, finding, is_over=False)
                finding.hold(bool(raised), f"{fault}: {error!r} without a fault")
                finding.hold(_ENDLESS not in str(error), f"{fault}: {error}")
                return "ended the engine"
        self._check_ends(socket, fault, finding, is_over=True)
        self._check_core(core, fault, finding)
        if not raised:
            return "not reached"
        failed = any(deltas[-1].error for deltas in socket.deltas.values())
        return "ended requests" if failed else "nobody noticed"

    def _living_core(self) -> EngineCore:
        if self._core is None or self._core.stats().drafter_failures:
            self._core = self.make()
            self.num_made += 1
        return self._core

    def _check_ends(
        self, socket: NoSocket, fault: Fault, finding: Finding, *, is_over: bool
    ) -> None:
        for name, expected in self._expected.items():
            deltas = socket.deltas.get(name, [])
            ends = [delta for delta in deltas if delta.finish_reason is not None]
            told = tokens_of(deltas)
            finding.hold(len(ends) <= 1, f"{fault}: {name} ended {len(ends)} times")
            finding.hold(not ends or deltas[-1] is ends[0], f"{fault}: {name} goes on behind it")
            finding.hold(told == expected[: len(told)] or name == _ABORTED, f"{fault}: other words")
            if is_over and name != _ABORTED:
                finding.hold(len(ends) == 1, f"{fault}: {name} never ended")
                is_whole = told == expected or (bool(ends) and ends[0].error is not None)
                finding.hold(is_whole, f"{fault}: {name} lost words")

    def _check_core(self, core: EngineCore, fault: Fault, finding: Finding) -> None:
        """Nothing of what is over may be left."""
        try:
            core.kv.check_invariants()
        except AssertionError as error:
            finding.violations[f"{fault}: {error}"] += 1
        left = {
            "blocks": core.kv.usage,
            "requests": len(core.scheduler.requests),
            "running": core.scheduler.num_running,
            "waiting": core.scheduler.num_waiting,
            "grammars": len(core._grammars._matchers),
            "bookings": len(core._ledger._untold),
            "slots": 0 if core._loop is None else len(core._loop._slots),
        }
        for name, count in left.items():
            finding.hold(not count, f"{fault}: {name} are left")


def script(core: EngineCore) -> list[tuple[int, Any]]:
    """Plan who comes when: a few at once, some later, one of them given up."""
    params: list[tuple[int, SamplingParams]] = [
        (0, greedy(18)),
        (0, seeded(16)),
        (0, _shaped(24, 1.0)),
        (4, seeded(14, repetition_penalty=1.2, top_k=20)),
        (5, seeded(40)),
        (6, greedy(10, prompt_logprobs=1)),
        (9, seeded(9, logprobs=2, n=2)),
        (12, _shaped(20, 0.7)),
    ]
    rng = random.Random(5)
    shared = [rng.randrange(97, 123) for _ in range(12)]
    messages: list[tuple[int, Any]] = [(11, AbortRequests([_ABORTED]))]
    for number, (moment, own) in enumerate(params):
        prompt = [*shared, *(rng.randrange(97, 123) for _ in range(rng.randint(2, 20)))]
        made = make_requests(prompt, own, request_id=f"r{number}", info=core.info)
        messages.append((moment, AddRequests([NewRequest.of(request) for request in made])))
    return messages


def _shaped(max_tokens: int, temperature: float) -> SamplingParams:
    shape = StructuredOutput(kind="json_schema", text=_SHAPE)
    return SamplingParams(
        max_tokens=max_tokens, temperature=temperature, seed=3, structured_output=shape
    )


def serve(core: EngineCore, socket: NoSocket) -> None:
    """Run the engine's own loop over what the script says, until it is over."""
    EngineLoop(core, socket, NoNote()).run()  # type: ignore[arg-type]


def _owner(core: EngineCore, place: str) -> Any:
    owner: Any = core
    for name in filter(None, place.split(".")):
        owner = getattr(owner, name, None)
    return owner


def _sites(core: EngineCore) -> Iterator[tuple[str, str, Any]]:
    for place, methods in SITES.items():
        owner = _owner(core, place)
        yield from ((place, method, owner) for method in methods if hasattr(owner, method))


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Let an object or a module have another attribute until the block ends."""
    own = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


@contextmanager
def counting(core: EngineCore, socket: NoSocket) -> Iterator[Counter[tuple[str, str]]]:
    """Count the calls of every site, from the engine's being ready."""
    counts: Counter[tuple[str, str]] = Counter()

    def counted(key: tuple[str, str], work: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            counts[key] += socket.is_ready
            return work(*args, **kwargs)

        return wrapped

    with ExitStack() as stack:
        for place, method, owner in list(_sites(core)):
            work = counted((place, method), getattr(owner, method))
            stack.enter_context(replaced(owner, method, work))
        yield counts


@contextmanager
def raising(core: EngineCore, socket: NoSocket, fault: Fault, number: int) -> Iterator[list[int]]:
    """Raise at one call, the first of which is number 0, once the engine is ready.

    Yields:
        A list that has something in it once the fault was raised.
    """
    owner = _owner(core, fault.place)
    work = getattr(owner, fault.method)
    raised: list[int] = []
    calls = iter(range(2**31))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if socket.is_ready and next(calls) == number:
            raised.append(number)
            raise ERRORS[fault.error]()
        return work(*args, **kwargs)

    with replaced(owner, fault.method, wrapped):
        yield raised


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what the engine logs of faults out of sight until the block ends."""
    log = logging.getLogger("engine")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def _setups() -> dict[str, Callable[[], EngineCore]]:
    """Name engines of all ways through a step."""
    return {
        "nobody drafts": partial(_core, num_blocks=40),
        "a draft model": partial(_core, _model(), num_blocks=60, speculation=3),
        "auto": partial(_core, _model(), num_blocks=60, speculation="auto"),
        "ngram": partial(_core, drafters="ngram", speculation=3, num_blocks=60),
        "ahead": partial(_late_core, _model(), speculation=2),
    }


def _model() -> Any:
    llama = tiny_llama(vocab=_VOCAB)
    llama.config.eos_token_id = llama.generation_config.eos_token_id = _EOS
    return from_model(llama)


def _core(*draft: Any, **options: Any) -> EngineCore:
    options.setdefault("max_model_len", 96)
    return make_core(_model(), *draft, tokenizer=byte_tokenizer(), **options)


def _late_core(*draft: Any, **options: Any) -> EngineCore:
    """Make a core whose device does its work late, so that steps are launched ahead."""
    late = partial(make_decode_loop, queue=LateQueue(), graphs=RecordedGraphs())
    with replaced(engine.core, "make_decode_loop", late):
        return _core(*draft, decode_ahead="on", **options)
