"""The one door into the engine: checks what a caller asks for, and turns it into requests.

The server and the offline `LLM` both come through here, so that a limit is checked once and the
same way. It knows the limits of the model that is served; no torch, no tokenizer, no HTTP.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from engine.errors import ContextLengthExceededError, InvalidRequestError
from engine.request import FinishReason, Request
from engine.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a loaded engine says of itself; all that its callers need to know.

    Attributes:
        model_name: hub id or folder of the target.
        max_model_len: prompt and answer tokens at most.
        vocab_size: width of the logits; every token id is below it.
        eos_token_ids: tokens that end an answer.
        has_draft: whether a draft model is loaded.
        num_draft_tokens: draft tokens per pass; 0 is plain decoding.
        num_blocks: KV cache blocks, the scratch block included.
        block_size: tokens per KV cache block.
        warnings: what was said at start of drafts that will not be used.
        synthetic_acceptance: chances by draft position with which drafts are accepted unseen; none
            = they are verified, and every token is the target's.
        attention_backends: who computes attention on a GPU, by model, kind of pass and shape.
    """

    model_name: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    has_draft: bool
    num_draft_tokens: int
    num_blocks: int
    block_size: int
    warnings: tuple[str, ...] = ()
    synthetic_acceptance: tuple[float, ...] = ()
    attention_backends: dict[str, str] = field(default_factory=dict)

    @property
    def num_cache_tokens(self) -> int:
        """Tokens that the whole KV cache holds; block 0 is scratch."""
        return (self.num_blocks - 1) * self.block_size

    @property
    def max_total_tokens(self) -> int:
        """Prompt and answer tokens that one request can have at most."""
        return min(self.max_model_len, self.num_cache_tokens)


def make_requests(
    prompt_token_ids: Sequence[int],
    params: SamplingParams,
    *,
    request_id: str,
    info: ModelInfo,
    priority: int = 0,
    cache_salt: str = "",
    external_id: str = "",
    wants_provenance: bool = False,
    is_background: bool = False,
) -> list[Request]:
    """Check one prompt against the model's limits and make one request per choice.

    A seed that is drawn is the same for all choices; log probabilities of the prompt are the first
    choice's. With `max_tokens` 0 and none of these, requests come back already finished (`length`).

    Args:
        prompt_token_ids: the prompt, at least one token.
        params: sampling settings; `max_tokens` None means as many as fit.
        request_id: unique; the requests are called `<request_id>-<choice index>`.
        info: the limits of the model that is served.
        priority: lower is served first.
        cache_salt: requests with different salts share no cached prefix.
        external_id, wants_provenance, is_background: see `Request`.

    Raises:
        ContextLengthExceededError: the prompt, or prompt and answer, exceed the context.
        InvalidRequestError: an empty prompt, a token id outside the vocabulary, or what cannot
            hold where drafts are accepted unseen.
    """
    prompt = list(prompt_token_ids)
    _check_prompt(prompt, info)
    params.check_vocab(info.vocab_size)
    if info.synthetic_acceptance:
        _check_holds_unseen(params)
    max_tokens = _resolve_max_tokens(len(prompt), params, info)
    seed = secrets.randbits(64) if params.seed is None else params.seed
    first = replace(params, seed=seed, max_tokens=max_tokens)
    others = replace(first, prompt_logprobs=None)
    requests = [
        Request(
            request_id=f"{request_id}-{choice_index}",
            prompt_token_ids=prompt,
            params=others if choice_index else first,
            eos_token_ids=info.eos_token_ids,
            choice_index=choice_index,
            priority=priority,
            arrival_time=time.monotonic(),
            max_total_tokens=len(prompt) + max_tokens,
            cache_salt=cache_salt,
            external_id=external_id,
            wants_provenance=wants_provenance,
            is_background=is_background,
        )
        for choice_index in range(params.n)
    ]
    if max_tokens == 0:
        _finish_complete(requests)
    return requests


def _finish_complete(requests: Sequence[Request]) -> None:
    for request in requests:
        if not request.lacks_prompt_logprobs:
            request.finish(FinishReason.LENGTH)


def _check_prompt(prompt: list[int], info: ModelInfo) -> None:
    if not prompt:
        raise InvalidRequestError(
            "The prompt has no tokens; give at least one.", param="prompt", code="invalid_value"
        )
    for token_id in prompt:
        if isinstance(token_id, bool) or not isinstance(token_id, int):
            raise InvalidRequestError(
                f"prompt: {token_id!r} is not a token id.", param="prompt", code="invalid_value"
            )
        if not 0 <= token_id < info.vocab_size:
            raise InvalidRequestError(
                f"prompt: token id {token_id} is outside the vocabulary of "
                f"{info.vocab_size} tokens.",
                param="prompt",
                code="invalid_value",
            )


# What is promised of each token holds only where the target has sampled it.
_HELD_BY_SAMPLING: tuple[tuple[str, str, Callable[[SamplingParams], bool]], ...] = (
    (
        "structured_output",
        "a shape of the answer (response_format, structured_outputs, tools whose calls must hold)",
        lambda params: params.structured_output is not None,
    ),
    (
        "logprobs",
        "log probabilities (best_of ranks by them)",
        lambda params: params.logprobs is not None,
    ),
    (
        "allowed_token_ids",
        "a choice of allowed tokens",
        lambda params: params.allowed_token_ids is not None,
    ),
    ("bad_words", "words to avoid", lambda params: bool(params.bad_words_token_ids)),
    ("logit_bias", "a bias", lambda params: bool(params.logit_bias)),
)


def _check_holds_unseen(params: SamplingParams) -> None:
    for name, meaning, is_asked in _HELD_BY_SAMPLING:
        if is_asked(params):
            raise InvalidRequestError(
                f"{name}: {meaning} cannot hold under --synthetic-acceptance, where drafts are "
                "accepted that the target did not sample. Leave it out, or start without.",
                param=name,
                code="unsupported_parameter",
            )


def _resolve_max_tokens(num_prompt: int, params: SamplingParams, info: ModelInfo) -> int:
    """Return how many tokens may be generated, or say which numbers do not fit."""
    limit = info.max_total_tokens
    wanted = params.max_tokens
    least = max(params.min_tokens, 1) if wanted is None else wanted
    if num_prompt + least > limit:
        field = "max_tokens" if wanted is not None else "min_tokens"
        raise ContextLengthExceededError(
            f"{_describe_limit(info)} However, {num_prompt + least} tokens were asked for "
            f"({num_prompt} in the prompt, {least} to generate). Shorten the prompt or the answer.",
            param="prompt" if num_prompt + 1 > limit else field,
        )
    return limit - num_prompt if wanted is None else wanted


def _describe_limit(info: ModelInfo) -> str:
    length = f"This model's maximum context length is {info.max_model_len} tokens"
    if info.num_cache_tokens >= info.max_model_len:
        return f"{length}."
    return (
        f"{length}, of which the KV cache holds {info.num_cache_tokens} "
        f"({info.num_blocks - 1} blocks of {info.block_size}; raise kv_cache_memory for more)."
    )
