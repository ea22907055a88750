"""Decides how a draft's words reach the target: as they are, by common tokens, or as text.

It knows two loaded models and their tokenizers, and what the setting asks for; it says once, in a
log line, what it chose and why.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from engine.config import SAME_VOCABULARY, SLEM, TLI
from engine.errors import DraftMismatchError
from engine.model.loader import LoadedModel
from engine.speculative.vocabulary_bridge import Overlap, VocabularyBridge
from engine.token_bytes import TokenBytes, Tokenizer

logger = logging.getLogger(__name__)

# Below this, most of what the draft could say, or of what the target would, is out of reach.
_LEAST_OVERLAP = 0.5


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A model and its tokenizer, as far as it has one."""

    model: LoadedModel
    tokenizer: Tokenizer | None


@dataclass(frozen=True, slots=True)
class ForeignVocabulary:
    """How a draft of another vocabulary is understood.

    Attributes:
        bridge: the way between the vocabularies.
        method: `tli` or `slem`.
    """

    bridge: VocabularyBridge
    method: str


def choose_vocabulary(
    wanted: str, target: Vocabulary, draft: Vocabulary
) -> ForeignVocabulary | None:
    """Choose how the draft's words reach the target.

    Args:
        wanted: one of `engine.config.VOCABULARIES`.
        target: the model that is served.
        draft: the model that drafts.

    Returns:
        None where both share one vocabulary.

    Raises:
        DraftMismatchError: they do not, and nothing can be done about it, or nothing was wanted.
    """
    difference = _difference(target, draft)
    if wanted == SAME_VOCABULARY or difference is None:
        if difference is not None:
            raise DraftMismatchError(f"{difference} Choose a draft of the same model family.")
        if wanted not in (TLI, SLEM):
            return None
    bridge = _build_bridge(target, draft, difference or "Bytes are asked for.")
    overlap = bridge.overlap
    method = wanted if wanted in (TLI, SLEM) else choose_method(overlap)
    logger.info(
        "draft_vocabulary method=%s reason=%s draft=%s common_tokens=%d of_draft=%.2f "
        "of_target=%.2f all_bytes=%s",
        method,
        "asked for" if method == wanted else "overlap",
        draft.model.name,
        overlap.num_tokens,
        overlap.of_draft,
        overlap.of_target,
        str(overlap.has_all_bytes).lower(),
    )
    return ForeignVocabulary(bridge, method)


def choose_method(overlap: Overlap) -> str:
    """Choose between common tokens and text by what two vocabularies share."""
    shares = min(overlap.of_draft, overlap.of_target)
    return TLI if shares >= _LEAST_OVERLAP and overlap.has_all_bytes else SLEM


def describe_difference(target: Mapping[str, int], draft: Mapping[str, int]) -> str | None:
    """Say in one clause how two vocabularies (token text to id) differ; None if they do not."""
    if target == draft:
        return None
    by_id = {token_id: text for text, token_id in draft.items()}
    moved = [(i, text) for text, i in target.items() if by_id.get(i) != text]
    extra = len(draft.keys() - target.keys())
    if not moved:
        return f"it has {extra} tokens that the target lacks ({len(draft)} against {len(target)})"
    token_id, text = min(moved)
    theirs = by_id.get(token_id)
    example = "missing in the draft" if theirs is None else f"{theirs!r} to the draft"
    return (
        f"{len(moved)} of {len(target)} token ids differ, and the draft has {extra} tokens of its "
        f"own; for example id {token_id} is {text!r} to the target and {example}"
    )


def _difference(target: Vocabulary, draft: Vocabulary) -> str | None:
    """Say in a sentence how the vocabularies differ; widths decide where a tokenizer is missing."""
    if target.tokenizer is None or draft.tokenizer is None:
        widths = draft.model.vocab_size, target.model.vocab_size
        if widths[0] == widths[1]:
            return None
        return (
            f"The draft {draft.model.name} has {widths[0]} token ids, the target "
            f"{target.model.name} has {widths[1]}: they do not share a vocabulary."
        )
    clause = describe_difference(target.tokenizer.get_vocab(), draft.tokenizer.get_vocab())
    if clause is None:
        return None
    return (
        f"The draft {draft.model.name} does not share the vocabulary of the target "
        f"{target.model.name}: {clause}."
    )


def _build_bridge(target: Vocabulary, draft: Vocabulary, difference: str) -> VocabularyBridge:
    spelled: list[TokenBytes] = []
    for vocabulary in (target, draft):
        name = vocabulary.model.name
        if vocabulary.tokenizer is None:
            raise DraftMismatchError(f"{difference} {name} has no tokenizer to translate with.")
        tokens = TokenBytes(vocabulary.tokenizer)
        if not tokens.is_exact:
            raise DraftMismatchError(
                f"{difference} The tokens of {name} do not stand for bytes (neither byte-level nor "
                "sentencepiece with byte fallback), so nothing can translate."
            )
        spelled.append(tokens)
    return VocabularyBridge(spelled[0], spelled[1], target.model.eos_token_ids)
