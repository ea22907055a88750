"""The fields that chat and plain completions share: how tokens are chosen, shaped and sent."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from engine.sampling_params import MAX_DRAFT_TOKENS
from server.protocol.wire import WireModel

MAX_STOPS = 16
MAX_STOP_LENGTH = 1000
MAX_STOP_TOKEN_IDS = 128
MAX_LOGIT_BIAS = 1024
MAX_ALLOWED_TOKEN_IDS = 16_384
MAX_BAD_WORDS = 256
MAX_BAD_WORD_LENGTH = 1000
MAX_TIMEOUT_S = 86_400
MAX_MESSAGES = 4096

StopText = Annotated[str, Field(max_length=MAX_STOP_LENGTH)]
StopTokenIds = Annotated[list[int], Field(max_length=MAX_STOP_TOKEN_IDS)]
LogitBias = Annotated[dict[str, float], Field(max_length=MAX_LOGIT_BIAS)]
AllowedTokenIds = Annotated[list[int], Field(max_length=MAX_ALLOWED_TOKEN_IDS)]
BadWords = Annotated[
    list[Annotated[str, Field(max_length=MAX_BAD_WORD_LENGTH)]], Field(max_length=MAX_BAD_WORDS)
]
# Seconds after which a call is given up.
Timeout = Annotated[float, Field(gt=0, le=MAX_TIMEOUT_S)]
# The caller's own labels, within the bounds that OpenAI documents.
Labels = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


class StreamOptions(WireModel):
    """What a stream sends beside the answer."""

    place: ClassVar[str] = "stream_options"
    refused: ClassVar[dict[str, tuple[Any, ...]]] = {"include_obfuscation": (False,)}

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchemaFormat(WireModel):
    """A named JSON schema; without `schema`, any object.

    The schema always holds: `strict` false asks for less than what is given. The field is called
    `schema` on the wire, a name that pydantic's models have for themselves.
    """

    place: ClassVar[str] = "response_format.json_schema"

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(WireModel):
    """What the answer's text must look like."""

    place: ClassVar[str] = "response_format"

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputsFields(WireModel):
    """The shape of the answer, as the field's servers name it; exactly one kind.

    Attributes:
        json_schema: `json` on the wire: a schema, or one as JSON text.
        regex: a regular expression.
        choice: the texts that may be answered.
        grammar: in Lark's, EBNF's or GBNF's notation.
        json_object: any JSON object.
        whitespace_pattern: with `json`, a regular expression of the space between its parts.
        disable_any_whitespace: with `json`, no space between its parts.
    """

    place: ClassVar[str] = "structured_outputs"
    refused: ClassVar[dict[str, tuple[Any, ...]]] = {
        "disable_additional_properties": (False,),
        "disable_fallback": (True, False),
        "structural_tag": (),
    }

    json_schema: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    whitespace_pattern: str | None = None
    disable_any_whitespace: bool | None = None


class SpeculationFields(WireModel):
    """How this request is speculated on; the answer is the same whatever is said here.

    Attributes:
        enabled: false = plain decoding.
        max_draft_tokens: per pass at most.
        report: whether the answer carries `metrics.speculative_decoding`; where acceptance is
            synthetic, it always does. The chunks of a stream then carry `provenance` too.
    """

    place: ClassVar[str] = "speculation"

    enabled: bool | None = None
    max_draft_tokens: Annotated[int, Field(ge=0, le=MAX_DRAFT_TOKENS)] | None = None
    report: bool | None = None


class SamplingFields(WireModel):
    """Fields of both endpoints; None, given or not, means the default.

    `user` and `metadata` are the caller's own labels; no answer depends on them. The shape of the
    answer is asked for once: by `response_format`, by `structured_outputs`, or by one of the older
    names that begin with `guided_`.
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
    logit_bias: LogitBias | None = None
    allowed_token_ids: AllowedTokenIds | None = None
    bad_words: BadWords | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: StopTokenIds | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputsFields | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None
    speculation: SpeculationFields | None = None
    cache_salt: Annotated[str, Field(min_length=1)] | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    timeout: Timeout | None = None
    user: str | None = None
    metadata: Labels | None = None
