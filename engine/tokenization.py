"""Turns text into token ids and, token by token, token ids into text.

It knows how tokenizers spell bytes, that characters may span tokens and tokens may span
characters, and where a stop text ends an answer. The text is a function of the tokens alone, never
of how many arrive at once. It knows nothing of requests' lives, of HTTP or of chat.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from engine.config import SHAPE_PREFIX
from engine.errors import ModelLoadError
from engine.sampling_params import SamplingParams
from engine.token_bytes import TokenBytes, Tokenizer

__all__ = ["IncrementalDetokenizer", "TokenBytes", "Tokenizer", "load_tokenizer"]

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "tiktoken.model",
    "spiece.model",
)
_REPLACEMENT = "\ufffd"
_PER_BYTE = "outdraft-replace-each-byte"
# A character has at most 4 bytes; tokens held back beyond this can only be broken text.
_MAX_WINDOW_TOKENS = 8


def load_tokenizer(
    name: str, revision: str | None = None, trust_remote_code: bool = False
) -> Tokenizer | None:
    """Load the tokenizer of a hub id or local folder; None for a folder without one, or a shape.

    Raises:
        ModelLoadError: there is a tokenizer, but it cannot be loaded.
    """
    if name.startswith(SHAPE_PREFIX):
        return None
    folder = Path(name)
    if folder.is_dir() and not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        return None
    # It takes seconds to import, in which a server that needs nothing else of it can listen.
    from transformers import AutoTokenizer

    try:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelLoadError(f"The tokenizer of {name} cannot be loaded: {error}") from error
    return tokenizer


class IncrementalDetokenizer:
    """One answer's text, grown token by token at constant cost per token.

    Characters that span tokens are held back until whole, and so is text that may be the
    beginning of a stop text; both are released when the answer ends without one.

    Args:
        tokens: the tokenizer, or its `TokenBytes` (shared by all answers of a server).
        params: `stop`, `include_stop_str_in_output`, `skip_special_tokens` and `min_tokens` hold
            here; stop texts are looked for once `min_tokens` tokens are there.
        prompt_token_ids: what the answer continues. With a prompt, the space that opens the
            answer belongs to it; without, sentencepiece's leading space is stripped.
        shown_ids: special tokens that stay in the text even with `skip_special_tokens`.
        has_offsets: whether offsets are wanted though log probabilities are not.

    Attributes:
        text: the text released so far.
        stopped_by: the stop text that ended the answer.
        num_tokens: tokens that belong to the answer; with `stopped_by`, the last is the one that
            completed the stop text, and tokens after it are ignored.
        token_offsets: where each token's text begins, in characters; where they are wanted.
        ends_with_stop_token: whether the last token ended the answer, and has no text.
    """

    def __init__(
        self,
        tokens: Tokenizer | TokenBytes,
        params: SamplingParams,
        prompt_token_ids: Sequence[int] = (),
        *,
        shown_ids: frozenset[int] = frozenset(),
        has_offsets: bool = False,
    ) -> None:
        self._bytes = tokens if isinstance(tokens, TokenBytes) else TokenBytes(tokens)
        special_ids = self._bytes.special_ids - shown_ids
        self._skipped = special_ids if params.skip_special_tokens else frozenset()
        self._decoder = _make_decoder(self._bytes, prompt_token_ids, self._skipped)
        self._params = params
        self._held = ""
        self._released: list[str] = []
        self._num_chars = 0
        self._num_cut_chars = 0
        self._has_offsets = has_offsets or params.logprobs is not None
        self.stopped_by: str | None = None
        self.num_tokens = 0
        self.token_offsets: list[int] = []
        self.ends_with_stop_token = False

    @property
    def text(self) -> str:
        """The text released so far."""
        return "".join(self._released)

    @property
    def num_certain_chars(self) -> int:
        """Characters released so far."""
        return self._num_chars

    @property
    def num_chars(self) -> int:
        """Characters of all tokens so far, what is held back or was cut off included."""
        return self._num_chars + len(self._held) + self._num_cut_chars

    @property
    def num_tokens_until_stop(self) -> int | None:
        """Tokens up to the one that completed the stop text; None without one."""
        return self.num_tokens if self.stopped_by is not None else None

    def add(
        self, token_ids: Sequence[int], is_last: bool = False, *, ends_with_stop_token: bool = False
    ) -> str:
        """Take the next tokens of the answer and return the text that can be shown now.

        Args:
            token_ids: new tokens, possibly none.
            is_last: no more tokens follow; everything held back is released.
            ends_with_stop_token: the last of them is a token that ended the answer; its text is
                left out unless `include_stop_str_in_output`.
        """
        first = len(self._released)
        for position, token_id in enumerate(token_ids):
            if self.stopped_by is not None:
                break
            is_stop_token = ends_with_stop_token and position == len(token_ids) - 1
            self._add_token(token_id, is_stop_token)
        if is_last and self.stopped_by is None:
            self._take(self._decoder.flush())
            self._release(self._held)
            self._held = ""
        return "".join(self._released[first:])

    def _add_token(self, token_id: int, is_stop_token: bool) -> None:
        self.num_tokens += 1
        if self._has_offsets:
            self.token_offsets.append(self._num_chars + len(self._held))
        if is_stop_token and not self._params.include_stop_str_in_output:
            self.ends_with_stop_token = True
            return
        if token_id not in self._skipped:
            self._take(self._decoder.feed(token_id))

    def _take(self, piece: str) -> None:
        """Release what is certain of the text held back and `piece`, or stop."""
        if not piece or self.stopped_by is not None:
            return
        params = self._params
        if not params.stop or self.num_tokens <= params.min_tokens:
            self._release(piece)
            return
        text = self._held + piece
        found = _first_stop(text, params.stop)
        if found is not None:
            start, self.stopped_by = found
            end = start + len(self.stopped_by) if params.include_stop_str_in_output else start
            self._held = ""
            self._num_cut_chars = len(text) - end
            self._release(text[:end])
            return
        num_held = _held_length(text, params.stop)
        self._held = text[len(text) - num_held :]
        self._release(text[: len(text) - num_held])

    def _release(self, text: str) -> None:
        if text:
            self._released.append(text)
            self._num_chars += len(text)


class _Decoder(Protocol):
    """Turns token ids into whole characters."""

    def feed(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class _ByteDecoder:
    """Decodes a row of tokens' bytes as UTF-8, holding back incomplete characters."""

    def __init__(self, tokens: TokenBytes, strips_leading_space: bool) -> None:
        self._tokens = tokens
        errors = "replace" if tokens.is_byte_level else _PER_BYTE
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors=errors)
        self._strips = strips_leading_space

    def feed(self, token_id: int) -> str:
        return self._strip(self._utf8.decode(self._tokens.bytes_of(token_id)))

    def flush(self) -> str:
        return self._strip(self._utf8.decode(b"", final=True))

    def _strip(self, text: str) -> str:
        if self._strips and text:
            self._strips = False
            return text.removeprefix(" ")
        return text


class _WindowDecoder:
    """Decodes tokens beside their predecessors, for tokenizers that do not spell bytes.

    What a token adds is what the text of the last few tokens grows by (as text-generation
    servers have long done it), so any tokenizer that can decode will do.
    """

    def __init__(self, tokens: TokenBytes, prompt_token_ids: Sequence[int]) -> None:
        self._decode = tokens.tokenizer.decode
        self._context = list(prompt_token_ids[-_MAX_WINDOW_TOKENS:])
        self._pending: list[int] = []

    def feed(self, token_id: int) -> str:
        self._pending.append(token_id)
        added = self._added()
        is_whole = added and not added.endswith(_REPLACEMENT)
        if not is_whole and len(self._pending) < _MAX_WINDOW_TOKENS:
            return ""
        self._context, self._pending = self._pending, []
        return added

    def flush(self) -> str:
        return self._added() if self._pending else ""

    def _added(self) -> str:
        before = str(self._decode(self._context, skip_special_tokens=False))
        after = str(self._decode(self._context + self._pending, skip_special_tokens=False))
        return after[len(before) :]


def _make_decoder(
    tokens: TokenBytes, prompt_token_ids: Sequence[int], skipped: frozenset[int]
) -> _Decoder:
    if not tokens.is_exact:
        return _WindowDecoder(tokens, [t for t in prompt_token_ids if t not in skipped])
    opens_text = all(token_id in tokens.special_ids for token_id in prompt_token_ids)
    return _ByteDecoder(tokens, tokens.strips_leading_space and opens_text)


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    """Show one U+FFFD per broken byte, as byte fallback does; byte-level BPE shows one per run."""
    assert isinstance(error, UnicodeDecodeError), f"a decoder raised {error!r}"
    return _REPLACEMENT * (error.end - error.start), error.end


codecs.register_error(_PER_BYTE, _replace_each_byte)


def _first_stop(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    """Return where the earliest stop text begins, and which; the longer one at one place."""
    found = [(start, stop) for stop in stops if (start := text.find(stop)) >= 0]
    return min(found, key=lambda hit: (hit[0], -len(hit[1])), default=None)


def _held_length(text: str, stops: Sequence[str]) -> int:
    """Return the length of the longest end of `text` that may begin a stop text."""
    longest = min(len(text), max(map(len, stops)) - 1)
    for length in range(longest, 0, -1):
        end = text[-length:]
        if any(stop.startswith(end) for stop in stops):
            return length
    return 0
