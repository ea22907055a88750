"""A parser of the command line that imports a command only once it is used.

A command is a module with `add_flags(parser)` and, unless it has commands of its own, `run(args)`,
which gives the exit status. Until somebody asks for it by name, its one line of help is all there
is, so that a chat, a list of commands or a spelling mistake need not wait for torch.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """A parser whose flags are added when the first word behind its name is read.

    Args:
        module: full name of the command's module; None = the flags are added by whoever made it.
        options: as for `argparse.ArgumentParser`.
    """

    def __init__(self, *, module: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._module = module

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Import the command, and parse."""
        if self._module is not None:
            command, self._module = importlib.import_module(self._module), None
            command.add_flags(self)
            if hasattr(command, "run"):
                self.set_defaults(func=command.run)
        return super().parse_known_args(args, namespace)
