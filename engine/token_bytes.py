"""The bytes that each token of a vocabulary stands for.

It knows the two ways in which tokenizers spell bytes (byte-level BPE and sentencepiece with byte
fallback) and says when a tokenizer uses neither. It knows nothing of answers or of streams.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokenizer: TypeAlias = "PreTrainedTokenizerBase"

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SENTENCEPIECE_SPACE = "\u2581"


class TokenBytes:
    """The bytes that each token adds to the text, looked up once per token.

    Args:
        tokenizer: the model's tokenizer.

    Attributes:
        is_byte_level: whether pieces are written in the byte-level alphabet (GPT-2's).
        is_exact: whether a text is its tokens' bytes in a row; when not, `text_of` and `bytes_of`
            still describe single tokens, and texts are decoded by `_WindowDecoder`.
        strips_leading_space: whether a text that begins with a space loses it (sentencepiece).
        special_ids: token ids that `skip_special_tokens` leaves out.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = _decoder_state(backend)
        self.is_byte_level = _is_byte_level(decoder)
        self.is_exact = self.is_byte_level or _is_sentencepiece(decoder)
        self.strips_leading_space = _strips_leading_space(decoder)
        self.special_ids = _special_ids(tokenizer, backend)
        self._known: dict[int, bytes] = {}

    def bytes_of(self, token_id: int) -> bytes:
        """Return the bytes of one token; none for an id beyond the tokenizer's vocabulary."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._spell(token_id)
        return known

    def text_of(self, token_id: int) -> str:
        """Return the text of one token alone; broken characters become U+FFFD."""
        return self.bytes_of(token_id).decode("utf-8", errors="replace")

    def _spell(self, token_id: int) -> bytes:
        if not self.is_exact:
            return str(self.tokenizer.decode([token_id], skip_special_tokens=False)).encode()
        piece: Any = (
            self.tokenizer.convert_ids_to_tokens(token_id)
            if 0 <= token_id < len(self.tokenizer)
            else None
        )
        if piece is None:
            return b""
        if self.is_byte_level:
            return _byte_level_bytes(piece)
        byte = _BYTE_TOKEN.fullmatch(piece)
        if byte is not None:
            return bytes([int(byte[1], 16)])
        return str(piece).replace(_SENTENCEPIECE_SPACE, " ").encode()


def _decoder_state(backend: Any) -> list[dict[str, Any]]:
    """Return the decoding steps of a fast tokenizer; none when it has no decoder."""
    decoder = getattr(backend, "decoder", None)
    if decoder is None:
        return []
    state: dict[str, Any] = json.loads(decoder.__getstate__())
    steps: list[dict[str, Any]] = state["decoders"] if state["type"] == "Sequence" else [state]
    return steps


def _is_byte_level(steps: list[dict[str, Any]]) -> bool:
    return [step["type"] for step in steps] == ["ByteLevel"]


def _is_sentencepiece(steps: list[dict[str, Any]]) -> bool:
    """Whether the steps are: spaces for U+2581, bytes for <0x..>, and no other change."""
    types = [step["type"] for step in steps]
    if types[:3] != ["Replace", "ByteFallback", "Fuse"] or types[3:] not in ([], ["Strip"]):
        return False
    replace, strip = steps[0], steps[3:]
    return (
        replace["pattern"] == {"String": _SENTENCEPIECE_SPACE}
        and replace["content"] == " "
        and all((step["content"], step["start"], step["stop"]) == (" ", 1, 0) for step in strip)
    )


def _strips_leading_space(steps: list[dict[str, Any]]) -> bool:
    return bool(steps) and steps[-1]["type"] == "Strip"


def _special_ids(tokenizer: Tokenizer, backend: Any) -> frozenset[int]:
    special = {int(token_id) for token_id in tokenizer.all_special_ids}
    if backend is not None:
        added = backend.get_added_tokens_decoder()
        special |= {token_id for token_id, token in added.items() if token.special}
    return frozenset(special)


def _byte_level_alphabet() -> dict[str, int]:
    """Return the characters by which byte-level BPE (GPT-2) writes the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_level_alphabet()


def _byte_level_bytes(piece: str) -> bytes:
    """Spell a byte-level piece; added tokens outside that alphabet are plain text."""
    try:
        return bytes([_BYTE_OF_CHARACTER[character] for character in piece])
    except KeyError:
        return piece.encode()
