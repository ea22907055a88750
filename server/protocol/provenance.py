"""Where the tokens of a streamed answer come from, pass by pass; told on request."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict


class LikelyToken(TypedDict):
    """A token that was likely at a place of the answer."""

    id: int
    text: str
    logprob: float


class DraftToken(TypedDict):
    """A draft token that was verified.

    `text` is that of the token alone. `survival` is the controller's estimate, made before the
    target's pass, of its chance to be accepted with all before it; null where nobody weighs drafts.
    """

    id: int
    text: str
    survival: float | None


class AnswerToken(TypedDict):
    """A token of the answer.

    `text` is what it adds to the raw text: nothing while a character is incomplete, and nothing
    where it is a special token that is left out. `origin` is `grammar` where a grammar left one
    choice, and else says whether the token had been drafted; `drafter` who drafted it. `survival`
    is that of the draft which was verified in its place. `logprob`, `rank` and `top` are there when
    log probabilities are asked for. `cut` marks tokens whose text is left out, wholly or in part,
    because the answer ends there.
    """

    id: int
    text: str
    origin: Literal["draft", "target", "grammar"]
    drafter: str | None
    survival: float | None
    logprob: float | None
    rank: int | None
    top: list[LikelyToken]
    cut: bool


class Pass(TypedDict):
    """One pass of the target for this answer.

    `ms` is the time since the answer's pass before, in milliseconds; for its first, since it left
    the queue. The first `accepted` of `tokens` had been drafted.
    """

    drafter: str | None
    proposed: int
    accepted: int
    ms: float
    draft: list[DraftToken]
    tokens: list[AnswerToken]


class Provenance(TypedDict):
    """The passes of a choice that are told with a chunk: each once its text is certain."""

    index: int
    passes: list[Pass]
