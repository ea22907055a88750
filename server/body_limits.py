"""How deeply a body may be nested; what its model limits by number or length is said there."""

from __future__ import annotations

from typing import Any

from engine.errors import InvalidRequestError

# The parser gives up at about 200; what reads schemas and messages is recursive, too.
MAX_NESTING = 100
# Long lists of token ids, in which the model allows no nesting anyway.
_FLAT_FIELDS = ("prompt", "tokens")


def check_nesting(body: Any) -> None:
    """Check how deeply objects and lists lie in each other, before anybody reads them.

    Raises:
        InvalidRequestError: a field is nested too deeply.
    """
    if not isinstance(body, dict):
        return
    for name, value in body.items():
        if name not in _FLAT_FIELDS and _is_too_deep(value):
            shown = name[:64]
            raise InvalidRequestError(
                f"{shown}: objects and lists lie more than {MAX_NESTING} levels deep in each "
                "other. Make it flatter.",
                param=shown,
                code="invalid_value",
            )


def _is_too_deep(value: Any) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    depth = 0
    while level:
        depth += 1
        if depth > MAX_NESTING:
            return True
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    return False
