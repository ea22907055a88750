"""Settings of the HTTP server itself; the engine's are in `engine/config.py`."""

from __future__ import annotations

from dataclasses import dataclass

from engine.config import option
from engine.errors import ConfigError
from server.reasoning import choose_reasoning
from server.tool_calls import choose_tool_format

LOG_LEVELS = ("critical", "error", "warning", "info", "debug")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where the server listens, and under which name it serves the model."""

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 = every interface")
    port: int = option(8000, "port to listen on")
    served_model_name: tuple[str, ...] = option(
        (),
        "names of the model on the wire; none = as it was given, or demo for the demo pair",
        metavar="NAME",
    )
    max_body_bytes: int = option(
        32 * 2**20, "bytes of a request's body at most; a larger one is refused"
    )
    ignore_unknown_fields: bool = option(
        False, "drop fields of requests that are unknown or not served, instead of refusing them"
    )
    tool_parser: str = option(
        "auto", "how the model writes calls; auto = as its chat template shows, none = no tools"
    )
    reasoning_parser: str = option(
        "auto", "how the model marks its thinking; auto = as its chat template shows, none = not"
    )
    drain_timeout_s: float = option(
        25.0, "seconds that answers may take to end once the server is told to stop"
    )
    log_level: str = option("info", f"one of {', '.join(LOG_LEVELS)}")

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port: {self.port} is outside [0, 65535].")
        if self.max_body_bytes < 1:
            raise ConfigError(f"max_body_bytes: {self.max_body_bytes} is below 1.")
        if self.drain_timeout_s < 0.0:
            raise ConfigError(f"drain_timeout_s: {self.drain_timeout_s} is below 0.")
        if self.log_level not in LOG_LEVELS:
            raise ConfigError(
                f"log_level: {self.log_level!r} is not one of {', '.join(LOG_LEVELS)}."
            )
        choose_tool_format(self.tool_parser, None)
        choose_reasoning(self.reasoning_parser, None)
        if "" in self.served_model_name:
            raise ConfigError("served_model_name: an empty name cannot be asked for.")
