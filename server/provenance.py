"""Tells where the tokens of a choice come from, each pass as soon as its text is certain.

Text that may be the beginning of a stop text is held back, and so are the passes that wrote it. It
knows deltas and characters; who drafted and why, the engine has said.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from engine.provenance import PassProvenance
from engine.request import GRAMMAR, RequestDelta, TokenLogprobs
from engine.tokenization import IncrementalDetokenizer, TokenBytes
from server.logprobs import finite
from server.protocol.provenance import AnswerToken, LikelyToken, Pass


@dataclass(frozen=True, slots=True)
class _Untold:
    """A pass whose text is not certain.

    Attributes:
        delta: what the engine said of it.
        ends: where the text of each token that counts would end if nothing were cut, in characters.
        ends_with_stop_token: whether the last of them ended the answer and is no part of its text.
    """

    delta: RequestDelta
    ends: list[int]
    ends_with_stop_token: bool


class UntoldPasses:
    """The passes of one choice that are still to be told.

    Args:
        tokens: name tokens.
        text: the choice's text; has offsets.
    """

    def __init__(self, tokens: TokenBytes, text: IncrementalDetokenizer) -> None:
        self._tokens = tokens
        self._text = text
        self._waiting: deque[_Untold] = deque()
        self._released = ""
        self._num_read = 0
        self._end = 0

    def take(self, delta: RequestDelta, released: str, *, is_over: bool) -> list[Pass]:
        """Take in what a step gave, after the text did, and give the passes that can be told.

        Args:
            delta: the step's.
            released: the text that it released.
            is_over: whether the choice has ended, so that all of its text is certain.
        """
        text, first = self._text, self._num_read
        self._released += released
        self._num_read = text.num_tokens
        if self._num_read > first:
            ends = [*text.token_offsets[first + 1 :], text.num_chars]
            self._waiting.append(_Untold(delta, ends, text.ends_with_stop_token))
        told: list[Pass] = []
        certain = text.num_certain_chars
        while self._waiting and (is_over or self._waiting[0].ends[-1] <= certain):
            told.append(self._tell(self._waiting.popleft()))
        return told

    def _tell(self, untold: _Untold) -> Pass:
        delta, ends = untold.delta, untold.ends
        provenance = delta.provenance
        assert provenance is not None, "the engine was asked"
        survival = provenance.survival
        return {
            "drafter": delta.drafter if delta.num_draft_tokens else None,
            "proposed": delta.num_draft_tokens,
            "accepted": min(delta.num_accepted_tokens, len(ends)),
            "ms": round(1000.0 * provenance.seconds, 3),
            "draft": [
                {
                    "id": token_id,
                    "text": self._tokens.text_of(token_id),
                    "survival": _at(survival, place),
                }
                for place, token_id in enumerate(provenance.draft_token_ids)
            ],
            "tokens": list(self._answer_tokens(untold, provenance)),
        }

    def _answer_tokens(self, untold: _Untold, provenance: PassProvenance) -> Iterator[AnswerToken]:
        delta, last = untold.delta, len(untold.ends) - 1
        for place, end in enumerate(untold.ends):
            token_id = delta.new_token_ids[place]
            was_drafted = place < delta.num_accepted_tokens
            entry = None if delta.logprobs is None else delta.logprobs[place]
            text, is_cut = self._take_text(end)
            yield {
                "id": token_id,
                "text": text,
                "origin": _origin(delta, place, provenance),
                "drafter": delta.drafter if was_drafted else None,
                "survival": _at(provenance.survival, place),
                "logprob": None if entry is None else finite(entry.logprob),
                "rank": None if entry is None else entry.rank,
                "top": [] if entry is None else self._top(entry),
                "cut": is_cut or (untold.ends_with_stop_token and place == last),
            }

    def _take_text(self, end: int) -> tuple[str, bool]:
        """Take the text up to a place, and say whether some of it is missing."""
        length = end - self._end
        text, self._released, self._end = self._released[:length], self._released[length:], end
        return text, len(text) < length

    def _top(self, entry: TokenLogprobs) -> list[LikelyToken]:
        return [
            {"id": token_id, "text": self._tokens.text_of(token_id), "logprob": finite(logprob)}
            for token_id, logprob in entry.top
        ]


def _origin(
    delta: RequestDelta, place: int, provenance: PassProvenance
) -> Literal["draft", "target", "grammar"]:
    was_drafted = place < delta.num_accepted_tokens
    if place in provenance.forced or (was_drafted and delta.drafter == GRAMMAR):
        return "grammar"
    return "draft" if was_drafted else "target"


def _at(survival: Sequence[float] | None, place: int) -> float | None:
    if survival is None or place >= len(survival):
        return None
    return round(survival[place], 4)
