"""C functions compiled on the machine that runs them, once, and kept in the user's cache folder.

A compiler that knows the processor makes loops several times as fast as ones made for all
processors. Where there is none, or it fails, there are no such functions, and one line says so;
whoever asks has another way. Knows files and compilers, and nothing of what the functions do.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from threading import Lock

logger = logging.getLogger(__name__)

_COMPILERS = ("cc", "gcc", "clang")
# Sums may be added up in any order; what is not a number or infinite is treated as it should be.
_FLAGS = (
    *("-O3", "-march=native", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math"),
    *("-fassociative-math", "-fno-signed-zeros", "-freciprocal-math"),
)
_TIMEOUT_S = 60
# Who asks for what another thread is making waits for it.
_making = Lock()


def compile_all() -> None:
    """Compile this folder's C files, if this machine has not done so before."""
    for source in sorted(Path(__file__).parent.glob("*.c")):
        native_library(source)


@lru_cache
def native_library(source: Path) -> ctypes.CDLL | None:
    """Load the functions of a C file, compiling it if this machine has not done so before.

    Returns:
        The library; None where it cannot be compiled or loaded.
    """
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        logger.info("native=no source=%s reason=no C compiler", source.name)
        return None
    try:
        target = _target(source, compiler)
        with _making:
            if not target.is_file():
                _compile(source, compiler, target)
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("native=no source=%s reason=%s", source.name, _brief(error))
        return None


def _target(source: Path, compiler: str) -> Path:
    files = [source, *sorted(source.parent.glob("*.h"))]
    origin = [*(file.read_text(encoding="utf-8") for file in files), compiler, *_FLAGS]
    origin.append(platform.platform())
    origin.append(_processor())
    key = hashlib.blake2b("|".join(origin).encode(), digest_size=10).hexdigest()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "outdraft" / f"{source.stem}-{key}.so"


def _processor() -> str:
    """Name what `-march=native` depends on, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    told = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return "|".join(told[:2])


def _compile(source: Path, compiler: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        command = [compiler, *_FLAGS, "-o", str(made), str(source), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
        made.replace(target)


def _brief(error: Exception) -> str:
    told = getattr(error, "stderr", None) or str(error)
    return str(told).strip().split("\n")[0][:200]
