"""What all request bodies share: unknown fields, and fields that we cannot honour, are refused.

A field that is known to OpenAI's clients but not served here is listed in `refused` with the
values that ask for nothing; those are accepted, since clients send them by default.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from engine.config_files import suggest
from engine.errors import InvalidRequestError


class WireModel(BaseModel):
    """A request body, or a part of one.

    Attributes:
        refused: fields that are not served, and the values of each that change nothing.
        place: the field of the body that holds this part; empty for the body itself.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    refused: ClassVar[dict[str, tuple[Any, ...]]] = {}
    place: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for name, value in values.items():
            where = f"{cls.place}.{name}" if cls.place else str(name)
            if name in cls.refused:
                if value is not None and value not in cls.refused[name]:
                    raise InvalidRequestError(
                        f"{where} is not supported by this server.",
                        param=where,
                        code="unsupported_parameter",
                    )
            elif name not in cls.model_fields:
                known = suggest(str(name), cls.model_fields)
                raise InvalidRequestError(
                    f"{where} is not a known parameter; {known}.",
                    param=where,
                    code="unknown_parameter",
                )
        return {name: value for name, value in values.items() if name not in cls.refused}
