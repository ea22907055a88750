"""Turns the sampling fields of a request body into `SamplingParams`; nothing gets lost."""

from __future__ import annotations

from typing import Any

from engine.errors import InvalidRequestError
from engine.sampling_params import MAX_SEED, SamplingParams
from engine.tokenization import Tokenizer
from server.protocol.sampling import SamplingFields, SpeculationFields

_AS_THEY_ARE = (
    "n",
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
    "ignore_eos",
    "skip_special_tokens",
    "include_stop_str_in_output",
)
_SMALLEST_SEED = -(2**63)


def sampling_params(
    body: SamplingFields, tokenizer: Tokenizer, *, max_tokens: int | None, logprobs: int | None
) -> SamplingParams:
    """Read the shared fields of a body but for the shape of the answer (`server.answer_shape`).

    Args:
        body: a validated body.
        tokenizer: spells `bad_words`.
        max_tokens: of the answer; None means as many as fit.
        logprobs: alternatives per token; None means none are wanted.

    Raises:
        InvalidRequestError: a value outside its limits.
    """
    _check_stream_options(body)
    given: dict[str, Any] = {name: getattr(body, name) for name in _AS_THEY_ARE}
    stop = [body.stop] if isinstance(body.stop, str) else body.stop
    given |= {
        # -1 is how the field's other servers say "all"
        "top_k": 0 if body.top_k == -1 else body.top_k,
        "seed": _seed(body.seed),
        "stop": _tuple(stop),
        "stop_token_ids": _tuple(body.stop_token_ids),
        "allowed_token_ids": _tuple(body.allowed_token_ids),
        "bad_words_token_ids": spell_bad_words(tokenizer, body.bad_words or []),
        "logit_bias": _logit_bias(body.logit_bias),
        "max_draft_tokens": _max_draft_tokens(body.speculation),
    }
    values = {name: value for name, value in given.items() if value is not None}
    return SamplingParams(**values, max_tokens=max_tokens, logprobs=logprobs)


def spell_bad_words(tokenizer: Tokenizer, words: list[str]) -> tuple[tuple[int, ...], ...]:
    """Spell each word as the tokenizer does, at the beginning of a text and after a space.

    Raises:
        InvalidRequestError: a word without letters.
    """
    spelled: dict[tuple[int, ...], None] = {}
    for word in words:
        if not word.strip():
            raise InvalidRequestError(
                "bad_words: an empty word cannot be avoided.",
                param="bad_words",
                code="invalid_value",
            )
        for text in (word, f" {word.lstrip()}"):
            token_ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
            spelled[tuple(token_ids)] = None
    return tuple(spelled)


def _check_stream_options(body: SamplingFields) -> None:
    options = body.stream_options
    if options is None or not (options.include_usage or options.continuous_usage_stats):
        return
    if not body.stream:
        raise InvalidRequestError(
            "stream_options: they need stream to be true; a whole answer has its usage.",
            param="stream_options",
            code="invalid_value",
        )
    if not options.include_usage:
        raise InvalidRequestError(
            "stream_options.continuous_usage_stats needs include_usage to be true.",
            param="stream_options",
            code="invalid_value",
        )


def wants_speculation_report(body: SamplingFields) -> bool:
    """Whether the answer carries `metrics.speculative_decoding`."""
    return body.speculation is not None and bool(body.speculation.report)


def wants_provenance(body: SamplingFields) -> bool:
    """Whether the answer's stream tells where its tokens come from."""
    return bool(body.stream) and wants_speculation_report(body)


def _max_draft_tokens(speculation: SpeculationFields | None) -> int | None:
    """Give the draft tokens per pass; None = as the engine is set."""
    if speculation is None:
        return None
    if speculation.enabled is False:
        return 0
    if speculation.enabled and speculation.max_draft_tokens == 0:
        raise InvalidRequestError(
            "speculation.max_draft_tokens: 0 is no speculation, but speculation.enabled is true.",
            param="speculation.max_draft_tokens",
            code="invalid_value",
        )
    return speculation.max_draft_tokens


def _seed(seed: int | None) -> int | None:
    """Map OpenAI's signed 64-bit seeds onto our unsigned ones; distinct seeds stay distinct."""
    if seed is None or not _SMALLEST_SEED <= seed < 0:
        return seed
    return seed & MAX_SEED


def _logit_bias(bias: dict[str, float] | None) -> dict[int, float] | None:
    if not bias:
        return None
    try:
        return {int(token_id): value for token_id, value in bias.items()}
    except ValueError as error:
        raise InvalidRequestError(
            f"logit_bias: its keys are token ids ({error}).",
            param="logit_bias",
            code="invalid_value",
        ) from error


def _tuple(values: list[Any] | None) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values)
