"""How failures of commands are told: in one line, on the standard error."""

from __future__ import annotations

from engine.errors import OutdraftError


def print_failure(error: OutdraftError) -> None:
    """Tell a failure; messages of other libraries may have many lines, and are told in one."""
    # Imported here because lists of commands and flags should not wait for it.
    from rich.console import Console

    message = " ".join(f"outdraft: {type(error).__name__}: {error}".split())
    Console(stderr=True, soft_wrap=True).print(message, style="red", markup=False, highlight=False)
