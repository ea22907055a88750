"""The request that an engine answers before it says that it is ready; no torch."""

from __future__ import annotations

from engine.request import Request
from engine.sampling_params import SamplingParams

_NUM_TOKENS = 3


def warm_up_request(max_model_len: int) -> Request:
    """Make a request of one token that decodes, and drafts where somebody does; no caller waits."""
    return Request(
        request_id="warm-up",
        prompt_token_ids=[0],
        params=SamplingParams(temperature=0.0, max_tokens=_NUM_TOKENS, ignore_eos=True, seed=0),
        max_total_tokens=min(1 + _NUM_TOKENS, max_model_len),
        cache_salt="warm-up",
        is_background=True,
    )
