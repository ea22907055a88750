"""The columns of a Parquet file to be: their types, and rows of JSON made into them.

A column of the source keeps its type, if its values can be read back from JSON; another gets the
type that all its values have in common; and one whose values have none is JSON text.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Sequence
from typing import Any


class ParquetColumns:
    """Learns the types of columns from all rows, and then makes tables of them.

    Args:
        names: of the columns, in their order.
        kept: schema of the source (pyarrow's); None = there is none.
        texts: columns that are JSON text in any case.
    """

    def __init__(self, names: Sequence[str], kept: Any, texts: Collection[str]) -> None:
        import pyarrow

        self._arrow = pyarrow
        self._names = names
        self._texts = texts
        self._mixed: set[str] = set()
        self._kept = {field.name: field.type for field in kept or () if field.name in names}
        self._found: dict[str, Any] = {}

    def study(self, rows: Sequence[dict[str, Any]]) -> None:
        """Learn from rows."""
        for name in self._names:
            if name in self._texts:
                continue
            values = [row.get(name) for row in rows]
            if name in self._kept and self._array(values, self._kept[name]) is None:
                del self._kept[name]
            self._learn(name, values)

    def schema(self) -> Any:
        """Give the schema, once all rows have been seen."""
        return self._arrow.schema([(name, self._type(name)) for name in self._names])

    def table(self, rows: Sequence[dict[str, Any]]) -> Any:
        """Make a table of rows that have been seen."""
        arrays = []
        for name in self._names:
            values = [row.get(name) for row in rows]
            if self._is_text(name):
                values = [_text(value) for value in values]
            arrays.append(self._array(values, self._type(name)))
        return self._arrow.table(arrays, schema=self.schema())

    def _type(self, name: str) -> Any:
        found = self._found.get(name, self._arrow.null())
        if self._is_text(name):
            return self._arrow.string()
        # A column without any value could get any type.
        found = self._arrow.string() if self._arrow.types.is_null(found) else found
        return self._kept.get(name, found)

    def _is_text(self, name: str) -> bool:
        return name in self._texts or (name in self._mixed and name not in self._kept)

    def _learn(self, name: str, values: list[Any]) -> None:
        """Find the type that these and all values before have in common."""
        arrow = self._arrow
        try:
            found = arrow.schema([(name, arrow.array(values).type)])
            before = arrow.schema([(name, self._found.get(name, arrow.null()))])
            common = arrow.unify_schemas([before, found], promote_options="permissive")
        except (arrow.ArrowInvalid, arrow.ArrowTypeError, arrow.ArrowNotImplementedError):
            self._mixed.add(name)
            return
        self._found[name] = common.field(0).type

    def _array(self, values: list[Any], kind: Any) -> Any:
        """Make values of a type; None = they cannot be."""
        arrow = self._arrow
        failures = (arrow.ArrowException, ValueError, TypeError)
        if arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind):
            try:
                values = [None if v is None else base64.b64decode(v, validate=True) for v in values]
            except failures:
                return None
        try:
            return arrow.array(values, type=kind)
        except failures:
            pass
        try:
            return arrow.array(values).cast(kind)
        except failures:
            return None


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)
