"""Guards the name `kernels`, which Outdraft shares with a package that transformers looks for.

Imports neither torch nor transformers: with the other package installed, transformers would
import from our `kernels` what only the other one has, and fail in the middle of an import.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution

from engine.errors import ModelLoadError

OTHER_DISTRIBUTION = "kernels"


def check_no_other_kernels() -> None:
    """Refuse to go on where the distribution called `kernels` is installed.

    Raises:
        ModelLoadError: it is; the message says what to do.
    """
    try:
        other = distribution(OTHER_DISTRIBUTION)
    except PackageNotFoundError:
        return
    raise ModelLoadError(
        f"the installed distribution 'kernels' {other.version} and Outdraft both hold a package "
        "named 'kernels', so transformers would import from the wrong one; "
        "run: pip uninstall kernels"
    )
