"""Log probabilities in the two shapes of the wire."""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.request import TokenLogprobs
from engine.tokenization import TokenBytes
from server.protocol.chat import ChatLogprobs, TokenLogprob, TopLogprob
from server.protocol.completions import CompletionLogprobs

# JSON has no infinity; OpenAI writes this for a token that cannot be.
_IMPOSSIBLE = -9999.0


def chat_logprobs(
    tokens: TokenBytes, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]
) -> ChatLogprobs:
    """Render for chat: text, bytes and alternatives of each token."""
    content = [
        _chat_token(tokens, token_id, entry)
        for token_id, entry in zip(token_ids, logprobs, strict=True)
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    tokens: TokenBytes,
    token_ids: Sequence[int],
    logprobs: Sequence[TokenLogprobs],
    offsets: Sequence[int],
) -> CompletionLogprobs:
    """Render for plain completions: parallel lists; alternatives include the chosen token."""
    return {
        "tokens": [_name(tokens, token_id) for token_id in token_ids],
        "token_logprobs": [_finite(entry.logprob) for entry in logprobs],
        "top_logprobs": [
            {
                _name(tokens, alternative): _finite(value)
                for alternative, value in [*entry.top, (token_id, entry.logprob)]
            }
            for token_id, entry in zip(token_ids, logprobs, strict=True)
        ],
        "text_offset": list(offsets),
    }


def _chat_token(tokens: TokenBytes, token_id: int, entry: TokenLogprobs) -> TokenLogprob:
    return {
        **_chat_alternative(tokens, token_id, entry.logprob),
        "top_logprobs": [_chat_alternative(tokens, other, value) for other, value in entry.top],
    }


def _chat_alternative(tokens: TokenBytes, token_id: int, logprob: float) -> TopLogprob:
    return {
        "token": tokens.text_of(token_id),
        "logprob": _finite(logprob),
        "bytes": list(tokens.bytes_of(token_id)),
    }


def _name(tokens: TokenBytes, token_id: int) -> str:
    """Name a token by its text; one that is no whole text by its bytes, as OpenAI does."""
    spelled = tokens.bytes_of(token_id)
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _IMPOSSIBLE
