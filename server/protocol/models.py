"""The list of served models."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class ModelCard(TypedDict):
    """One served model; the context length is known once it is loaded."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: NotRequired[int]


class ModelList(TypedDict):
    """All served models."""

    object: Literal["list"]
    data: list[ModelCard]
