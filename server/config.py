"""Settings of the HTTP server itself; the engine's are in `engine/config.py`."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from engine.config import option
from engine.errors import ConfigError
from engine.log_format import LOG_FORMATS, TEXT
from server.reasoning import choose_reasoning
from server.tool_calls import choose_tool_format
from server.trace_endpoint import check_endpoint

IN_MEMORY = "memory"
LOG_LEVELS = ("critical", "error", "warning", "info", "debug")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where the server listens, under which name it serves the model, whom, and how much."""

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 = every interface")
    port: int = option(8000, "port to listen on")
    served_model_name: tuple[str, ...] = option(
        (),
        "names of the model on the wire; none = as it was given, or demo for the demo pair",
        metavar="NAME",
    )
    api_key: tuple[str, ...] = option(
        (),
        "keys that callers must have one of; others can see them among the processes, so rather "
        "use a file, or OUTDRAFT_API_KEYS",
        metavar="KEY",
        is_secret=True,
    )
    api_key_file: str | None = option(None, "file of such keys, one a line; # begins a comment")
    admin_key: tuple[str, ...] = option(
        (),
        "keys that may do everything; /metrics, /server_info and /statistics then need one of "
        "them (also OUTDRAFT_ADMIN_KEYS)",
        metavar="KEY",
        is_secret=True,
    )
    allowed_host: tuple[str, ...] = option(
        (),
        "names under which the server may be called; none = any, but where it listens on this "
        "machine alone and has no keys, this machine's own",
        metavar="NAME",
    )
    cors_origin: tuple[str, ...] = option(
        (), "origins of web pages that may call the server; * = any", metavar="ORIGIN"
    )
    trusted_proxy: tuple[str, ...] = option(
        (), "addresses of proxies whose X-Forwarded-For is believed", metavar="ADDRESS"
    )
    ssl_certfile: str | None = option(None, "certificate (PEM) to serve HTTPS with")
    ssl_keyfile: str | None = option(None, "its private key (PEM), if that is another file")
    max_queue: int = option(
        4096, "answers that wait to begin at most, beside those that can run; more get a 429"
    )
    max_queued_tokens: int = option(
        8 * 2**20, "prompt tokens of answers that wait to begin at most; more get a 429"
    )
    max_requests_per_minute: int | None = option(
        None, "calls a minute of each key at most (without keys, of each address); none = any"
    )
    max_tokens_per_minute: int | None = option(
        None, "prompt and answer tokens a minute of each key or address; none = any"
    )
    max_concurrent_requests: int | None = option(
        None, "calls of each key or address that are being answered at once; none = any"
    )
    min_priority: int | None = option(
        None,
        "lowest priority, which is served first, that requests without an admin key may have; "
        "none = any",
    )
    request_timeout: float | None = option(
        None, "seconds an answer may take; a request's timeout can only be shorter; none = any"
    )
    body_timeout: float = option(
        60.0, "seconds in which a request's head, and then its body, must have come"
    )
    send_timeout: float = option(
        60.0, "seconds for which a client may take nothing of what it is sent"
    )
    max_stream_buffer: int = option(
        2**20, "bytes that may wait for the reader of a stream; one who is slower is cut off"
    )
    max_body_bytes: int = option(
        32 * 2**20, "bytes of a request's body at most; a larger one is refused"
    )
    ignore_unknown_fields: bool = option(
        False, "drop fields of requests that are unknown or not served, instead of refusing them"
    )
    web: bool = option(True, "show the playground, a page to chat with the model, at /")
    tool_parser: str = option(
        "auto", "how the model writes calls; auto = as its chat template shows, none = no tools"
    )
    reasoning_parser: str = option(
        "auto", "how the model marks its thinking; auto = as its chat template shows, none = not"
    )
    response_cache: bool = option(
        False,
        "answer exact repeats of requests with temperature 0 or a seed from memory, which is kept "
        "on disk",
    )
    response_cache_path: str | None = option(
        None,
        f"file that the response cache is kept in; {IN_MEMORY} = in memory alone; none = "
        "outdraft/responses.sqlite3 in the user's cache folder",
        metavar="FILE",
    )
    response_cache_bytes: int = option(
        256 * 2**20,
        "bytes of remembered answers at most, in memory and again on disk; what was not used for "
        "longest goes first",
    )
    response_cache_seconds: float = option(
        7 * 24 * 3600.0, "seconds for which an answer is remembered"
    )
    data_dir: str | None = option(
        None,
        "folder of files and batches, of one server; none = outdraft in the user's data folder",
        metavar="FOLDER",
    )
    max_file_bytes: int = option(512 * 2**20, "bytes of an uploaded file at most")
    max_stored_bytes: int = option(
        8 * 2**30, "bytes of files that each key may keep, uploaded or of answers, to upload more"
    )
    max_batch_lines: int = option(50_000, "requests of a batch at most")
    max_batch_line_bytes: int = option(4 * 2**20, "bytes of each of them at most")
    batch_concurrency: int | None = option(
        None, "requests of batches that are asked at once; none = as many as run at once"
    )
    drain_timeout_s: float = option(
        25.0, "seconds that answers may take to end once the server is told to stop"
    )
    price_per_hour: float | None = option(
        None,
        "what an hour of this server costs, in any currency; /statistics then tells what a million "
        "tokens cost; none = it does not",
    )
    log_level: str = option("info", f"one of {', '.join(LOG_LEVELS)}")
    log_format: str = option(
        TEXT, f"lines of the log, of both processes: {' or '.join(LOG_FORMATS)}"
    )
    otlp_endpoint: str | None = option(
        None,
        "collector that takes OTLP over HTTP (http://HOST:4318): it gets a trace of each request; "
        "needs `pip install 'outdraft[otel]'`; none = no traces",
        metavar="URL",
    )

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port: {self.port} is outside [0, 65535].")
        if self.drain_timeout_s < 0.0:
            raise ConfigError(f"drain_timeout_s: {self.drain_timeout_s} is below 0.")
        if self.log_level not in LOG_LEVELS:
            raise ConfigError(
                f"log_level: {self.log_level!r} is not one of {', '.join(LOG_LEVELS)}."
            )
        if self.log_format not in LOG_FORMATS:
            raise ConfigError(
                f"log_format: {self.log_format!r} is not one of {', '.join(LOG_FORMATS)}."
            )
        if self.otlp_endpoint is not None:
            check_endpoint(self.otlp_endpoint)
        choose_tool_format(self.tool_parser, None)
        choose_reasoning(self.reasoning_parser, None)
        if "" in self.served_model_name:
            raise ConfigError("served_model_name: an empty name cannot be asked for.")
        self._check_limits()
        self._check_files()

    @property
    def scheme(self) -> str:
        """How addresses of this server begin."""
        return "http" if self.ssl_certfile is None else "https"

    def without_secrets(self) -> ServerConfig:
        """Give the settings without what nobody may read."""
        nothing: dict[str, Any] = dict.fromkeys(_SECRETS, ())
        return replace(self, **nothing)

    def shown(self) -> dict[str, Any]:
        """Give the settings that anybody may read, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _SECRETS}

    def _check_limits(self) -> None:
        _at_least(self, 0, "max_queue")
        _at_least(self, 1, "max_body_bytes", "max_queued_tokens", "max_stream_buffer")
        _at_least(self, 1, "response_cache_bytes")
        _at_least(self, 1, "max_file_bytes", "max_stored_bytes", "batch_concurrency")
        _at_least(self, 1, "max_batch_lines", "max_batch_line_bytes")
        _at_least(
            self, 1, "max_requests_per_minute", "max_tokens_per_minute", "max_concurrent_requests"
        )
        for name in ("request_timeout", "body_timeout", "send_timeout", "response_cache_seconds"):
            seconds = getattr(self, name)
            if seconds is not None and not 0.0 < seconds < float("inf"):
                raise ConfigError(f"{name}: {seconds} is no number of seconds above 0.")
        if self.price_per_hour is not None and not 0.0 <= self.price_per_hour < float("inf"):
            raise ConfigError(f"price_per_hour: {self.price_per_hour} is no price of 0 or more.")

    def _check_files(self) -> None:
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ConfigError("ssl_keyfile: it belongs to a certificate; give --ssl-certfile.")
        for name in ("api_key_file", "ssl_certfile", "ssl_keyfile"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise ConfigError(f"{name}: there is no file {path!r}.")
        if self.ssl_certfile is not None:
            try:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile)
            except OSError as error:
                raise ConfigError(
                    f"ssl_certfile: {self.ssl_certfile!r} is no certificate with a key that fits "
                    f"({error}); a key in a file of its own is --ssl-keyfile."
                ) from error


_SECRETS = tuple(f.name for f in fields(ServerConfig) if f.metadata["is_secret"])


def _at_least(config: ServerConfig, least: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise ConfigError(f"{name}: {value} is below {least}.")
