"""Remembered answers in memory: who has to go, and when."""

from __future__ import annotations

from server.response_cache.answer_memory import ENTRY_BYTES, AnswerMemory, Entry


def test_memory_forgets_the_oldest_of_what_was_restored_first() -> None:
    now = 100.0
    memory = AnswerMemory(10_000, 50.0, lambda: now)
    memory.put(b"new", Entry(b"", 100.0))
    assert memory.restore(b"used last", Entry(b"", 60.0))
    assert memory.restore(b"used first", Entry(b"", 80.0))
    assert not memory.restore(b"new", Entry(b"", 70.0))
    assert not memory.restore(b"old", Entry(b"", 40.0))
    assert not memory.restore(b"large", Entry(bytes(10_000), 90.0))
    memory.settle()
    now = 111.0
    assert list(memory.shrink()) == [b"used last"]
    now = 131.0
    assert list(memory.shrink()) == [b"used first"]
    assert b"new" in memory


def test_memory_is_bounded_by_bytes() -> None:
    memory = AnswerMemory(3 * ENTRY_BYTES + 30, 1.0, lambda: 0.0)
    assert not memory.put(b"huge", Entry(bytes(4 * ENTRY_BYTES), 0.0))
    for key in (b"a", b"b", b"c"):
        assert memory.put(key, Entry(bytes(10), 0.0))
    assert not list(memory.shrink())
    assert memory.get(b"a") is not None
    memory.put(b"d", Entry(bytes(10), 0.0))
    assert list(memory.shrink()) == [b"b"]
    memory.put(b"c", Entry(bytes(11), 0.0))
    assert list(memory.shrink()) == [b"a"]
    assert memory.num_bytes == 2 * ENTRY_BYTES + 21
    assert memory.num_evicted == 2
