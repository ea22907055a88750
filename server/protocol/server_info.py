"""What a server says of itself."""

from __future__ import annotations

from typing import Any, NotRequired

from typing_extensions import TypedDict

from engine.client.supervision import EngineState


class Health(TypedDict):
    """Whether requests can be served."""

    status: EngineState


class Version(TypedDict):
    """The version of the server."""

    version: str


class ServedModels(TypedDict):
    """What is served, and who drafts for it; what was loaded is known once it is."""

    names: list[str]
    target: str | None
    draft: str | None
    loaded: NotRequired[dict[str, Any]]


class Observability(TypedDict):
    """How the server can be watched, beside `/metrics`."""

    log_level: str
    log_format: str
    tracing: bool
    otlp_endpoint: str | None


class ServerInfo(TypedDict):
    """Everything that a bug report should say.

    `config` are the engine's settings, section by section, `server` those of the HTTP server,
    `supervision` those of the engine's process;
    `limits` is what one request can ask for at most, `warnings` what was logged of drafts that are
    loaded and not used. `synthetic_acceptance` is there only
    where drafts are accepted unseen, for benchmarks: the rates by draft position.
    """

    version: str
    status: EngineState
    uptime_seconds: int
    models: ServedModels
    config: dict[str, dict[str, Any]]
    server: dict[str, Any]
    supervision: dict[str, Any]
    observability: Observability
    limits: dict[str, int]
    warnings: list[str]
    versions: dict[str, str]
    synthetic_acceptance: NotRequired[list[float]]
