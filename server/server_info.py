"""What a server tells of itself: settings, models, limits and versions; no secrets."""

from __future__ import annotations

import platform
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

from engine.sampling_params import MAX_LOGPROBS, MAX_N
from engine.version import __version__
from server.body_limits import MAX_NESTING
from server.config import ServerConfig
from server.prompts import MAX_CHOICES, MAX_PROMPTS
from server.protocol import sampling
from server.protocol.chat_messages import MAX_TOOLS
from server.protocol.completions import MAX_BEST_OF
from server.protocol.server_info import ServedModels, ServerInfo
from server.served import Served

_LIBRARIES = ("torch", "transformers", "tokenizers", "llguidance", "fastapi", "pydantic", "uvicorn")


def server_info(served: Served, config: ServerConfig) -> ServerInfo:
    """Describe a server; what was loaded is left out while it is loading."""
    info: ServerInfo = {
        "version": __version__,
        "status": served.status,
        "uptime_seconds": int(time.time()) - served.created,
        "models": _models(served),
        "config": asdict(served.config),
        "server": config.shown(),
        "supervision": asdict(served.engine.supervision),
        "observability": {
            "log_level": config.log_level,
            "log_format": config.log_format,
            "tracing": served.trace is not None,
            "otlp_endpoint": config.otlp_endpoint,
        },
        "limits": _limits(served, config),
        "warnings": _warnings(served),
        "versions": {"python": platform.python_version(), **_versions()},
    }
    rates = served.config.speculation.acceptance_rates
    return {**info, "synthetic_acceptance": list(rates)} if rates else info


def _models(served: Served) -> ServedModels:
    models: ServedModels = {
        "names": list(served.names),
        "target": served.config.model.model,
        "draft": served.config.speculation.draft,
    }
    if served.is_ready:
        loaded = asdict(served.engine.info)
        del loaded["warnings"]
        models["loaded"] = {**loaded, "eos_token_ids": sorted(loaded["eos_token_ids"])}
    return models


def _warnings(served: Served) -> list[str]:
    at_start = served.engine.info.warnings if served.is_ready else ()
    return [*at_start, *served.engine.stats.warnings]


def _limits(served: Served, config: ServerConfig) -> dict[str, int]:
    limits = {
        "max_body_bytes": config.max_body_bytes,
        "max_prompts": MAX_PROMPTS,
        "max_choices": MAX_CHOICES,
        "max_n": MAX_N,
        "max_best_of": MAX_BEST_OF,
        "max_stops": sampling.MAX_STOPS,
        "max_stop_length": sampling.MAX_STOP_LENGTH,
        "max_stop_token_ids": sampling.MAX_STOP_TOKEN_IDS,
        "max_logit_bias": sampling.MAX_LOGIT_BIAS,
        "max_allowed_token_ids": sampling.MAX_ALLOWED_TOKEN_IDS,
        "max_bad_words": sampling.MAX_BAD_WORDS,
        "max_logprobs": MAX_LOGPROBS,
        "max_tools": MAX_TOOLS,
        "max_messages": sampling.MAX_MESSAGES,
        "max_nesting": MAX_NESTING,
        "max_timeout": sampling.MAX_TIMEOUT_S,
        "max_queue": config.max_queue,
        "max_queued_tokens": config.max_queued_tokens,
        "max_stream_buffer": config.max_stream_buffer,
    }
    if served.is_ready:
        limits["max_model_len"] = served.engine.info.max_total_tokens
    return limits


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
