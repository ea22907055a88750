"""What the engine process and its client say to each other; plain data, no torch.

One message per line of talk: requests and aborts go down, one message per step comes up with what
every request gained. msgspec writes them as msgpack.
"""

from __future__ import annotations

import msgspec

from engine.config import EngineConfig
from engine.door import ModelInfo
from engine.metrics import EngineStats
from engine.request import Request, RequestDelta
from engine.sampling_params import SamplingParams


class NewRequest(msgspec.Struct, array_like=True):
    """What the engine has to know of a request; see `engine.request.Request`."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    eos_token_ids: frozenset[int]
    choice_index: int
    priority: int
    arrival_time: float
    max_total_tokens: int
    cache_salt: str
    external_id: str
    wants_provenance: bool
    is_background: bool

    @classmethod
    def of(cls, request: Request) -> NewRequest:
        """Take the parts of a fresh request that travel."""
        return cls(
            request_id=request.request_id,
            prompt_token_ids=request.prompt_token_ids,
            params=request.params,
            eos_token_ids=request.eos_token_ids,
            choice_index=request.choice_index,
            priority=request.priority,
            arrival_time=request.arrival_time,
            max_total_tokens=request.max_total_tokens,
            cache_salt=request.cache_salt,
            external_id=request.external_id,
            wants_provenance=request.wants_provenance,
            is_background=request.is_background,
        )

    def make(self) -> Request:
        """Make the request that these parts describe."""
        return Request(
            request_id=self.request_id,
            prompt_token_ids=self.prompt_token_ids,
            params=self.params,
            eos_token_ids=self.eos_token_ids,
            choice_index=self.choice_index,
            priority=self.priority,
            arrival_time=self.arrival_time,
            max_total_tokens=self.max_total_tokens,
            cache_salt=self.cache_salt,
            external_id=self.external_id,
            wants_provenance=self.wants_provenance,
            is_background=self.is_background,
        )


class StartEngine(msgspec.Struct, tag=True):
    """Load the models and begin.

    Attributes:
        config: all settings, the models named.
        core_factory: `module:callable` that makes an `EngineCore` from the settings.
        log_level: a level name of the logging module.
        log_format: see `engine.log_format`.
    """

    config: EngineConfig
    core_factory: str
    log_level: str
    log_format: str


class AddRequests(msgspec.Struct, tag=True):
    """Put requests into the queue."""

    requests: list[NewRequest]


class AbortRequests(msgspec.Struct, tag=True):
    """Forget requests and free their blocks; unknown ids are ignored."""

    request_ids: list[str]


class StopEngine(msgspec.Struct, tag=True):
    """End the process."""


class EngineReady(msgspec.Struct, tag=True):
    """The models are loaded and requests are welcome."""

    info: ModelInfo


class Heartbeat(msgspec.Struct, tag=True):
    """The engine has nothing to do, and lives.

    Attributes:
        num_heard: messages that it has had since it began; later ones are on their way.
    """

    num_heard: int


class StepOutputs(msgspec.Struct, tag=True):
    """What one step added to every request that has something new, and the engine's counters."""

    deltas: list[RequestDelta]
    stats: EngineStats


class EngineFailed(msgspec.Struct, tag=True):
    """The engine cannot load or go on; it ends after this message.

    Attributes:
        error_class: class name of the error.
        message: what failed.
    """

    error_class: str
    message: str


ToEngine = StartEngine | AddRequests | AbortRequests | StopEngine
FromEngine = EngineReady | StepOutputs | Heartbeat | EngineFailed

encoder = msgspec.msgpack.Encoder()
to_engine_decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
from_engine_decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
