"""Turns the fields of configuration dataclasses into command-line flags, and back.

It knows argparse and the metadata that `option()` leaves on a field; it refuses to know what the
settings mean. A flag that is not given changes nothing, so a file's value stays.
"""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Collection
from dataclasses import Field, fields
from typing import Any

from engine.config import EngineConfig
from engine.config_files import apply_options

_POSITIONAL = {"model"}


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Add `[MODEL]` and one flag per engine setting."""
    hints = typing.get_type_hints(EngineConfig)
    for section in fields(EngineConfig):
        add_option_flags(parser.add_argument_group(section.name), hints[section.name])


def config_from_args(args: argparse.Namespace, base: EngineConfig | None) -> EngineConfig:
    """Apply the flags that were given to `base`, or to the defaults.

    Raises:
        ConfigError: a value that cannot be honoured.
    """
    hints = typing.get_type_hints(EngineConfig)
    given: dict[str, Any] = {}
    for section in fields(EngineConfig):
        given |= given_options(args, hints[section.name])
    return apply_options(base or EngineConfig(), given)


def add_option_flags(
    parser: argparse._ActionsContainer, kind: type[Any], only: Collection[str] | None = None
) -> None:
    """Add one flag per field of a dataclass.

    Booleans become `--x` and `--no-x`; a flag of several texts takes them one after another,
    separated by commas, or is given several times.

    Args:
        parser: gets the flags.
        kind: the dataclass.
        only: names of the fields that get one; None = all.
    """
    hints = typing.get_type_hints(kind)
    for field in fields(kind):
        if only is None or field.name in only:
            _add_flag(parser, field, _value_type(hints[field.name]))


def given_options(args: argparse.Namespace, kind: type[Any]) -> dict[str, Any]:
    """Give the fields of a dataclass whose flags were given, by name."""
    given = {f.name: getattr(args, f.name) for f in fields(kind) if hasattr(args, f.name)}
    return {name: _given_value(value) for name, value in given.items()}


def _given_value(value: Any) -> Any:
    """Give a flag's value as its field has it: several texts are a tuple."""
    if not isinstance(value, list):
        return value
    return tuple(text.strip() for word in value for text in word.split(","))


def _add_flag(parser: argparse._ActionsContainer, field: Field[Any], kind: type[Any]) -> None:
    help_text = _help(field)
    if field.name in _POSITIONAL:
        parser.add_argument(
            field.name, nargs="?", metavar="MODEL", default=argparse.SUPPRESS, help=help_text
        )
        return
    flag = "--" + (field.metadata["flag"] or field.name.replace("_", "-"))
    if kind is bool:
        parser.add_argument(
            flag,
            dest=field.name,
            action=argparse.BooleanOptionalAction,
            default=argparse.SUPPRESS,
            help=help_text,
        )
        return
    if kind is tuple:
        parser.add_argument(
            flag,
            dest=field.name,
            action="extend",
            nargs="+",
            metavar=field.metadata["metavar"] or "TEXT",
            default=argparse.SUPPRESS,
            help=help_text,
        )
        return
    # A flag with a spelling of its own (`--speculation off`) is read where settings are applied.
    parser.add_argument(
        flag,
        dest=field.name,
        type=str if field.metadata["flag"] else kind,
        metavar=field.metadata["metavar"] or kind.__name__.upper(),
        default=argparse.SUPPRESS,
        help=help_text,
    )


def _value_type(hint: Any) -> type[Any]:
    """Give the type of a field's value, None left aside."""
    if isinstance(hint, types.UnionType):
        hint = next(k for k in typing.get_args(hint) if k is not type(None))
    hint = typing.get_origin(hint) or hint
    assert isinstance(hint, type), f"{hint} has no flag"
    return hint


def _help(field: Field[Any]) -> str:
    text: str = field.metadata["help"].replace("%", "%%")
    if field.default is None or "none =" in text:
        return text
    shown = str(field.default).lower() if isinstance(field.default, bool) else field.default
    return f"{text} (default: {shown})"
