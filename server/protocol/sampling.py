"""The fields that chat and plain completions share: sampling, stopping, streaming, labels."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from server.protocol.wire import WireModel

MAX_STOPS = 16


class StreamOptions(WireModel):
    """What a stream sends beside the answer."""

    place: ClassVar[str] = "stream_options"
    refused: ClassVar[dict[str, tuple[Any, ...]]] = {"include_obfuscation": (False,)}

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingFields(WireModel):
    """Fields of both endpoints; None, given or not, means the default.

    `user` and `metadata` are the caller's own labels; no answer depends on them.
    """

    model: str | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
