"""Under which key an answer is remembered: everything that its tokens and their steps depend on.

Every field of a request and of its sampling settings is part of the key, but for those that are
named here; a field that is added later is part of it, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import msgspec

from engine.request import Request
from engine.sampling_params import SamplingParams

# Who asks and when, how soon it is served, and what becomes of a request in the engine.
UNKEYED_OF_REQUESTS = frozenset(
    {
        "request_id",
        "external_id",
        "is_background",
        "priority",
        "arrival_time",
        "status",
        "token_ids",
        "num_computed_tokens",
        "num_draft_computed_tokens",
        "num_in_flight_tokens",
        "num_cached_tokens",
        "scheduled_time",
        "num_preemptions",
        "finish_reason",
        "stop_reason",
        "num_prompt_logprobs",
    }
)
# The most likely token needs no noise, and the door draws a seed where none is given.
UNKEYED_WHEN_GREEDY = frozenset({"seed"})
_KEYED = tuple(f.name for f in fields(Request) if f.name not in UNKEYED_OF_REQUESTS)
_encode = msgspec.msgpack.Encoder().encode


def answer_key(
    prompts: Sequence[Sequence[Request]],
    *,
    model: str,
    tenant: str,
    shown_ids: Collection[int] = (),
) -> bytes:
    """Give the key of a call's answer.

    Args:
        prompts: the requests of each prompt, as the door made them: what a caller left out has its
            default here.
        model: says which model answers, and how it is run.
        tenant: whose answer it is.
        shown_ids: special tokens that stay in the text, where stop texts may find them.
    """
    asked = [(len(requests), _asked(requests[0])) for requests in prompts]
    return hashlib.sha256(_encode([model, tenant, sorted(shown_ids), asked])).digest()


def _asked(request: Request) -> dict[str, Any]:
    """Give what a prompt's requests are asked for; they differ in the place of their choice."""
    return {name: _plain(getattr(request, name)) for name in _KEYED}


def _plain(value: Any) -> Any:
    """Write a value so that equal values are written alike."""
    if isinstance(value, SamplingParams):
        return _fields(value, UNKEYED_WHEN_GREEDY if value.is_greedy else ())
    if is_dataclass(value):
        return _fields(value)
    if isinstance(value, Mapping):
        return sorted((key, _plain(held)) for key, held in value.items())
    if isinstance(value, frozenset):
        return sorted(value)
    return value


def _fields(value: Any, left_out: Collection[str] = ()) -> dict[str, Any]:
    return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.name not in left_out}
