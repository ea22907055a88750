"""Log probabilities in the two shapes of the wire."""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.request import TokenLogprobs
from engine.tokenization import TokenBytes
from server.protocol.chat import ChatLogprobs, TokenLogprob, TopLogprob
from server.protocol.completions import CompletionLogprobs, PromptLogprob, PromptLogprobs

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
    logprobs: Sequence[TokenLogprobs | None],
    offsets: Sequence[int],
    num_top: int,
) -> CompletionLogprobs:
    """Render for plain completions: parallel lists, one entry per token.

    Args:
        tokens: name the tokens.
        token_ids: of the text.
        logprobs: of each token; None for the first of a prompt, which follows nothing.
        offsets: where the text of each token begins, in characters.
        num_top: alternatives per token; beside them the token itself is always listed.
    """
    return {
        "tokens": [_name(tokens, token_id) for token_id in token_ids],
        "token_logprobs": [_value(entry) for entry in logprobs],
        "top_logprobs": [
            None if entry is None else _by_name(tokens, token_id, entry, num_top)
            for token_id, entry in zip(token_ids, logprobs, strict=True)
        ],
        "text_offset": list(offsets),
    }


def joined_logprobs(
    first: CompletionLogprobs | None, second: CompletionLogprobs | None
) -> CompletionLogprobs | None:
    """Put the log probabilities of a prompt and of its answer together."""
    if first is None or second is None:
        return first or second
    return {
        "tokens": first["tokens"] + second["tokens"],
        "token_logprobs": first["token_logprobs"] + second["token_logprobs"],
        "top_logprobs": first["top_logprobs"] + second["top_logprobs"],
        "text_offset": first["text_offset"] + second["text_offset"],
    }


def prompt_logprobs(
    tokens: TokenBytes, token_ids: Sequence[int], scores: Sequence[TokenLogprobs], num_top: int
) -> PromptLogprobs:
    """Render the log probabilities of a prompt, by token id.

    Args:
        tokens: name the tokens.
        token_ids: of the prompt.
        scores: of its tokens from the second on.
        num_top: alternatives per token; beside them the prompt's own token is always listed.
    """
    return [
        None,
        *(
            _by_id(tokens, token_id, entry, num_top)
            for token_id, entry in zip(token_ids[1:], scores, strict=True)
        ),
    ]


def _by_name(
    tokens: TokenBytes, token_id: int, entry: TokenLogprobs, num_top: int
) -> dict[str, float]:
    """Give alternatives by their names, the chosen token among them.

    Tokens may share a name; none is merged with another: the less likely go by their ids.
    """
    listed = dict(entry.top[:num_top])
    listed.setdefault(token_id, entry.logprob)
    own = _name(tokens, token_id)
    named: dict[str, float] = {}
    for alternative, value in listed.items():
        name = _name(tokens, alternative)
        is_taken = name in named or (name == own and alternative != token_id)
        named[f"token_id:{alternative}" if is_taken else name] = finite(value)
    return named


def _by_id(
    tokens: TokenBytes, token_id: int, entry: TokenLogprobs, num_top: int
) -> dict[str, PromptLogprob]:
    ranked = [(token_id, entry.rank, entry.logprob)]
    ranked += [
        (alternative, rank, value)
        for rank, (alternative, value) in enumerate(entry.top[:num_top], start=1)
        if alternative != token_id
    ]
    return {
        str(alternative): {
            "logprob": finite(value),
            "rank": rank,
            "decoded_token": tokens.text_of(alternative),
        }
        for alternative, rank, value in ranked
    }


def _chat_token(tokens: TokenBytes, token_id: int, entry: TokenLogprobs) -> TokenLogprob:
    return {
        **_chat_alternative(tokens, token_id, entry.logprob),
        "top_logprobs": [_chat_alternative(tokens, other, value) for other, value in entry.top],
    }


def _chat_alternative(tokens: TokenBytes, token_id: int, logprob: float) -> TopLogprob:
    return {
        "token": tokens.text_of(token_id),
        "logprob": finite(logprob),
        "bytes": list(tokens.bytes_of(token_id)),
    }


def _name(tokens: TokenBytes, token_id: int) -> str:
    """Name a token by its text; one that is no whole text by its bytes, as OpenAI does."""
    spelled = tokens.bytes_of(token_id)
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def _value(entry: TokenLogprobs | None) -> float | None:
    return None if entry is None else finite(entry.logprob)


def finite(logprob: float) -> float:
    """Give a log probability as JSON can write it."""
    return logprob if math.isfinite(logprob) else _IMPOSSIBLE
