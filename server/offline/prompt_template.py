"""Prompts written with the fields of a record: Jinja in its sandbox; nothing may be undefined."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.errors import ConfigError

_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, keep_trailing_newline=False
)
_NAME = "<template>"


class TemplateFailedError(Exception):
    """A record does not fit the template; says which variable, and where in the template."""


class PromptTemplate:
    """A template for prompts.

    Args:
        flag: that it was given with, for errors.
        text: of the template, or `@` and the name of a file that holds it.

    Raises:
        ConfigError: there is no such file, or it is no template.
    """

    def __init__(self, flag: str, text: str) -> None:
        self._flag = flag
        source = text_or_file(flag, text)
        try:
            self._template = _ENVIRONMENT.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(f"{flag}: line {error.lineno}: {error.message}") from error

    def render(self, fields: Mapping[str, Any]) -> str:
        """Write the prompt of a record; all of it is also called `record`.

        Raises:
            TemplateFailedError: it needs what the record does not have.
        """
        try:
            return self._template.render({"record": fields, **fields})
        except Exception as error:
            # A template may do to values whatever its author likes, and fail in as many ways.
            place = _line_in_template(error)
            raise TemplateFailedError(f"{self._flag}, line {place}: {error}") from error


def text_or_file(flag: str, text: str) -> str:
    """Give a text, or what stands in the file that it names with an `@`.

    Raises:
        ConfigError: the file cannot be read.
    """
    if not text.startswith("@"):
        return text
    path = Path(text[1:])
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"{flag}: cannot read {path}: {reason}.") from error


def _line_in_template(error: Exception) -> int:
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == _NAME
    ]
    return frames[-1].lineno or 1 if frames else 1
