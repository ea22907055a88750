"""How many bytes of the C library's heap are in use: tensors, and what else Python does not see."""

from __future__ import annotations

import ctypes

from engine.errors import ConfigError

_FIELDS = (
    "arena", "ordblks", "smblks", "hblks", "hblkhd",
    "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
)  # fmt: skip


class _Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


def native_bytes() -> int:
    """Give the bytes that the main thread's heap has handed out and not got back.

    Freed memory that the process keeps is not counted, as it is in the size of a process.

    Raises:
        ConfigError: the C library does not tell: it is not glibc 2.33 or later.
    """
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError as error:
        raise ConfigError("parts: memory needs glibc 2.33 or later, which tells of it.") from error
    mallinfo2.restype = _Mallinfo2
    told = mallinfo2()
    # On the heap, and in mappings of their own.
    return int(told.uordblks) + int(told.hblkhd)
