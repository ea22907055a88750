"""JSON that is one line to whoever reads it, whatever they take for the end of a line."""

from __future__ import annotations

# JSON need not escape these, but many readers of lines, Python's `splitlines` among them, break
# lines there. In UTF-8 they are nothing else, and in JSON they stand in texts alone.
_LINE_BREAKS = {
    "\u0085".encode(): rb"\u0085",
    "\u2028".encode(): rb"\u2028",
    "\u2029".encode(): rb"\u2029",
}


def as_line(written: bytes) -> bytes:
    """End a JSON document with a newline, the only place where it breaks.

    Args:
        written: in UTF-8, without newlines of its own.
    """
    for character, escaped in _LINE_BREAKS.items():
        written = written.replace(character, escaped)
    return written + b"\n"
