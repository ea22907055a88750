"""What a running server serves: the engine, the model's text tools, and its names on the wire."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from engine.client.process import EngineClient
from engine.client.supervision import EngineState
from engine.config import EngineConfig
from engine.door import make_requests
from engine.errors import (
    ContextLengthExceededError,
    EngineNotReadyError,
    InvalidRequestError,
    ModelNotFoundError,
)
from engine.request import Request
from engine.sampling_params import SamplingParams
from engine.tokenization import TokenBytes, Tokenizer
from server.admission import Admission, open_door
from server.background_work import IS_BACKGROUND
from server.call_record import Call, current_call
from server.generation import Generation
from server.keys import ANYBODY, Caller
from server.metrics import ServerMetrics
from server.response_cache.cache import NOTHING, Recall, ResponseCache


@dataclass(slots=True)
class Served:
    """One server's model.

    Attributes:
        name: of the model on the wire.
        aliases: further names that requests may use.
        root: the model as it was given on start.
        config: the engine's settings.
        engine: the engine's client.
        metrics: of this server.
        fingerprint: changes when a setting changes that may change answers; says when these are
            not the model's.
        admission: says whether there is room for a call.
        created: when the server started, in Unix seconds.
        tool_parser: see `ServerConfig`.
        reasoning_parser: see `ServerConfig`.
        request_timeout: see `ServerConfig`; seconds.
        min_priority: see `ServerConfig`.
        caller: for whom.
        trace: tells each call as a trace, once it is over; None = nobody wants to know.
        response_cache: remembers answers; None = nobody does.
    """

    name: str
    aliases: tuple[str, ...]
    root: str
    config: EngineConfig
    engine: EngineClient
    metrics: ServerMetrics
    fingerprint: str
    admission: Admission
    created: int = field(default_factory=lambda: int(time.time()))
    tool_parser: str = "auto"
    reasoning_parser: str = "auto"
    request_timeout: float | None = None
    min_priority: int | None = None
    caller: Caller = ANYBODY
    trace: Callable[[Call], None] | None = None
    response_cache: ResponseCache | None = None
    _tokens: TokenBytes | None = None
    _longest_token: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that requests may use, the main one first."""
        return (self.name, *self.aliases)

    def for_caller(self, caller: Caller) -> Served:
        """Give the same, for one who calls."""
        return replace(self, caller=caller)

    @property
    def is_ready(self) -> bool:
        """Whether requests can be served."""
        return self._tokens is not None and self.engine.is_ready

    @property
    def status(self) -> EngineState:
        """Whether requests can be served, in a word."""
        state = self.engine.state
        is_loading = state is EngineState.OK and self._tokens is None
        return EngineState.LOADING if is_loading else state

    @property
    def tokens(self) -> TokenBytes:
        """The bytes of the model's tokens.

        Raises:
            EngineNotReadyError: the tokenizer is still loading.
        """
        if self._tokens is None:
            raise EngineNotReadyError("The server is still loading its model; try again soon.")
        return self._tokens

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises:
            EngineNotReadyError: it is still loading.
        """
        return self.tokens.tokenizer

    def install_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Take the tokenizer once it is loaded."""
        self._tokens = TokenBytes(tokenizer)
        # No piece stands for more characters than it is written with.
        self._longest_token = max(map(len, tokenizer.get_vocab()))

    def check_model(self, name: str | None) -> str:
        """Check the model that a request names; none means the one that is served.

        Returns:
            The name to answer with.

        Raises:
            ModelNotFoundError: another one is meant.
        """
        if name is None:
            return self.name
        if name not in self.names:
            served = ", ".join(repr(known) for known in self.names)
            raise ModelNotFoundError(
                f"The model {name!r} does not exist here; this server serves {served}."
            )
        return name

    def check_length(self, prompt: str | Sequence[int], param: str) -> None:
        """Check that a prompt can fit the model's context, without spending time on its tokens.

        Raises:
            ContextLengthExceededError: it has more tokens, or would if all were the longest.
            EngineError: the engine is loading, or gone.
        """
        limit = self.engine.info.max_total_tokens
        if isinstance(prompt, str):
            # A text need not be its tokens' texts in a row; then nothing is known yet.
            num_tokens = -(-len(prompt) // self._longest_token) if self.tokens.is_exact else 0
        else:
            num_tokens = len(prompt)
        if num_tokens > limit:
            raise ContextLengthExceededError(
                f"This model's maximum context length is {limit} tokens. However, {param} has "
                f"{num_tokens} at least. Shorten it.",
                param=param,
            )

    def check_ready(self) -> None:
        """Check that requests can be served.

        Raises:
            EngineError: the engine is loading, or gone.
        """
        self.engine.check_ready()
        assert self.tokens is not None, "raises while loading"

    def generate(
        self,
        kind: str,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        priority: int | None,
        cache_salt: str | None = None,
        *,
        timeout_s: float | None = None,
        shown_ids: frozenset[int] = frozenset(),
        wants_provenance: bool = False,
    ) -> Generation:
        """Give prompts to the engine, all or none; or tell again an answer that is remembered.

        Args:
            kind: how the call's id begins.
            prompts: token ids of each prompt.
            params: of all of them.
            priority: lower is served first; None is 0.
            cache_salt: calls with different salts share no cached prefix.
            timeout_s: seconds after which the call is given up; the server's own may be sooner.
            shown_ids, wants_provenance: see `Generation` and `Request`.

        Raises:
            InvalidRequestError: a prompt cannot be served as asked.
            RefusalError: there is no room, or the caller has had what it may have.
            EngineError: the engine is loading, or gone.
        """
        self._check_priority(priority or 0)
        call = current_call.get()
        call_id = f"{kind}-{uuid.uuid4().hex}"
        make = partial(
            make_requests,
            params=params,
            info=self.engine.info,
            priority=priority or 0,
            cache_salt=self.caller.cache_salt(cache_salt or ""),
            external_id="" if call is None else call.request_id,
            wants_provenance=wants_provenance,
            is_background=IS_BACKGROUND.get(),
        )
        requests = [
            make(prompt, request_id=f"{call_id}-{index}") for index, prompt in enumerate(prompts)
        ]
        known = self._recall(requests, params, shown_ids)
        return Generation(
            call_id,
            requests,
            self.tokens,
            known.replay or self.engine,
            self.metrics,
            self.admission.enter(self.caller, requests, takes_places=known.replay is None),
            timeout_s=self._shortest_s(timeout_s),
            shown_ids=shown_ids,
            synthetic_acceptance=self.engine.info.synthetic_acceptance,
            call=call,
            tape=known.tape,
        )

    def _shortest_s(self, timeout_s: float | None) -> float | None:
        """Give how long a call may take: as it says, or as the server does."""
        # Background work waits for everybody else, and that is not its fault.
        longest_s = None if IS_BACKGROUND.get() else self.request_timeout
        return min((s for s in (timeout_s, longest_s) if s is not None), default=None)

    def _recall(
        self,
        requests: Sequence[Sequence[Request]],
        params: SamplingParams,
        shown_ids: frozenset[int],
    ) -> Recall:
        """Say what is remembered of a call."""
        if self.response_cache is None:
            return NOTHING
        info = self.engine.info
        return self.response_cache.recall(
            requests, params, info=info, caller=self.caller, shown_ids=shown_ids
        )

    def _check_priority(self, priority: int) -> None:
        least = self.min_priority
        if least is not None and priority < least and not self.caller.is_admin:
            raise InvalidRequestError(
                f"priority: {priority} is below {least}, the lowest that this server allows.",
                param="priority",
                code="invalid_value",
            )


def make_served(
    engine: EngineClient, config: EngineConfig, *, name: str, names: Sequence[str] = ()
) -> Served:
    """Name what an engine, which may still be loading, serves.

    Args:
        engine: started, perhaps still loading.
        config: its settings.
        name: the model as it was given.
        names: under which requests ask for it, the main one first; none = as it was given.
    """
    first, *others = dict.fromkeys(names or (name,))
    rates = config.speculation.acceptance_rates
    digest = hashlib.blake2b(repr(config).encode(), digest_size=5).hexdigest()
    metrics = ServerMetrics(first, lambda: engine.stats, rates, read_faults=lambda: engine.faults)
    return Served(
        name=first,
        aliases=tuple(others),
        root=name,
        config=config,
        engine=engine,
        metrics=metrics,
        admission=open_door(lambda: engine.stats, metrics),
        fingerprint=f"fp_{digest}_synthetic" if rates else f"fp_{digest}",
    )
