"""The file of the response cache: it outlives servers, and nothing that befalls it fails a call."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from engine.door import make_requests
from engine.errors import EngineError
from engine.request import RequestDelta
from engine.sampling_params import SamplingParams
from server.config import ServerConfig
from server.keys import read_keys
from server.response_cache import database, disk
from server.response_cache.answer_memory import ENTRY_BYTES
from server.response_cache.cache import ResponseCache
from server.response_cache.database import Database, ForeignFileError, Row
from server.response_cache.disk import Disk
from server.response_cache.place import cache_path
from server.response_cache.tape import KeptDelta, Replay
from tests.byte_tokenizer import byte_tokenizer
from tests.conftest import ROOT
from tests.doubles import FakeCore
from tests.server.harness import Api, run, serving
from tests.server.remembering import CHAT, NewWordsCore, ask, on_disk, outcome, same

HOLD = """
import sys
from pathlib import Path
from server.response_cache.database import Database
database = Database(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


@asynccontextmanager
async def remembering(config: ServerConfig, core: FakeCore | None = None) -> AsyncIterator[Api]:
    """Serve as `serve_http` does: with a cache that is taken up and closed."""
    async with serving(core=core or NewWordsCore(), config=config) as api:
        cache = api.served.response_cache
        assert cache is not None
        cache.start()
        try:
            yield api
        finally:
            await cache.close()


async def restored(api: Api) -> None:
    """Wait until everything is in memory."""
    assert api.served.response_cache is not None
    await api.served.response_cache.is_restored.wait()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def rows_of(path: Path) -> dict[bytes, Row]:
    """Give what a file has, as its next server would find it."""
    with closing(Database(path)) as file:
        return {row.key: row for rows in file.rows() for row in rows}


def fill(path: Path, rows: Iterable[Row]) -> None:
    with closing(Database(path)) as file:
        file.write(rows, (), ())


def test_answers_outlive_their_server(tmp_path: Path) -> None:
    config = on_disk(tmp_path / "deep" / "cache.sqlite3")

    async def scenario() -> None:
        async with remembering(config) as api:
            first = await ask(api, CHAT, stream=True)
        async with remembering(config) as api:
            await restored(api)
            second = await ask(api, CHAT, stream=True)
        assert (outcome(first), outcome(second)) == ("miss", "hit")
        assert same(first) == same(second)

    run(scenario)


def test_what_is_asked_before_the_file_is_read_is_answered(tmp_path: Path) -> None:
    config = on_disk(tmp_path / "cache.sqlite3")

    async def scenario() -> None:
        async with remembering(config) as api:
            await ask(api, CHAT)
        async with remembering(config) as api:
            newer = await ask(api, CHAT, headers={"cache-control": "no-cache"})
            await restored(api)
            assert same(await ask(api, CHAT)) == same(newer)
        async with remembering(config) as api:
            await restored(api)
            assert same(await ask(api, CHAT)) == same(newer)

    run(scenario)


def test_keys_find_their_answers_after_a_restart(tmp_path: Path) -> None:
    alice, bob = "sk-alice-0123456789", "sk-bob-0123456789"
    both = on_disk(tmp_path / "cache.sqlite3", api_key=(alice, bob))
    one = on_disk(tmp_path / "cache.sqlite3", api_key=(bob,))

    async def scenario() -> None:
        async with remembering(both) as api:
            assert outcome(await ask(api, CHAT, headers={"x-api-key": alice})) == "miss"
        async with remembering(both) as api:
            await restored(api)
            assert outcome(await ask(api, CHAT, headers={"x-api-key": alice})) == "hit"
            assert outcome(await ask(api, CHAT, headers={"x-api-key": bob})) == "miss"
            await ask(api, CHAT, headers={"x-api-key": alice}, max_tokens=2)
        async with remembering(one) as api:
            await restored(api)
            # Also where a key is the only one, it is not the one that asked.
            answer = await ask(api, CHAT, headers={"x-api-key": bob}, max_tokens=2)
            assert outcome(answer) == "miss"

    run(scenario)


def test_without_a_place_for_its_secret_a_server_has_a_fresh_one(tmp_path: Path) -> None:
    file = tmp_path / "cache.sqlite3"
    config = on_disk(file, api_key=("sk-alice-0123456789",))
    kept, again = (read_keys(config).find(["sk-alice-0123456789"]) for _ in range(2))
    assert kept == again
    secret = tmp_path / "cache.sqlite3.secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    secret.write_bytes(b"short")
    fresh, other = (read_keys(config).find(["sk-alice-0123456789"]) for _ in range(2))
    assert len({kept, fresh, other}) == 3


def test_files_are_for_their_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "cache.sqlite3"
    mask = os.umask(0)
    try:
        with closing(Database(path)) as file:
            file.write([Row(b"k", b"answer", 0.0, 0.0)], (), ())
            files = sorted(path.parent.iterdir())
            assert [f.name for f in files] == ["cache.sqlite3", "cache.sqlite3-wal"]
            assert {stat.S_IMODE(f.stat().st_mode) for f in files} == {0o600}
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        path.chmod(0o644)
        Database(path).close()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(mask)


def test_what_is_forgotten_is_wiped(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite3"
    rows = [Row(b"key%d" % i, b"a secret %d " % i * 500, 0.0, 0.0) for i in range(50)]
    fill(path, rows)
    assert b"a secret 7" in path.read_bytes()
    size = path.stat().st_size
    with closing(Database(path)) as file:
        file.write((), [row.key for row in rows], ())
    assert b"a secret" not in path.read_bytes()
    assert path.stat().st_size < size / 10


def test_migrations_bring_an_empty_file_to_the_newest_version(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite3"
    path.touch()
    Database(path).close()
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA user_version").fetchone() == (len(database.MIGRATIONS),)


def test_a_later_migration_keeps_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cache.sqlite3"
    fill(path, [Row(b"k", b"answer", 1.0, 2.0)])
    later = (*database.MIGRATIONS, "ALTER TABLE answers ADD COLUMN more TEXT")
    monkeypatch.setattr(database, "MIGRATIONS", later)
    assert rows_of(path) == {b"k": Row(b"k", b"answer", 1.0, 2.0)}
    monkeypatch.undo()
    with pytest.raises(ForeignFileError, match="version 2"):
        Database(path)


def foreign_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as file:
        file.execute("CREATE TABLE answers (key, answer, created, used)")
        file.commit()


def damaged_database(path: Path) -> None:
    fill(path, [Row(b"key%d" % i, b"x" * 900, 0.0, float(i)) for i in range(300)])
    content = path.read_bytes()
    path.write_bytes(content[:100] + b"\xff" * 3000 + content[3100:])


BROKEN: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("my letters to my aunt " * 10),
    "foreign": foreign_database,
    "damaged": damaged_database,
    "cut": lambda path: (damaged_database(path), path.write_bytes(path.read_bytes()[:5000])),
    "folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_cannot_be_used_is_left_alone(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cache.sqlite3"
    BROKEN[kind](path)
    before = path.read_bytes() if path.is_file() else b""

    async def scenario() -> None:
        async with remembering(on_disk(path)) as api:
            await until(lambda: bool(lost(caplog)))
            assert outcome(await ask(api, CHAT)) == "miss"
            assert outcome(await ask(api, CHAT)) == "hit"

    run(scenario)
    assert len(lost(caplog)) == 1
    assert str(path) in lost(caplog)[0]
    if kind in ("text", "foreign"):
        assert path.read_bytes() == before


def test_a_file_that_cannot_be_made_is_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()

    async def scenario() -> None:
        async with remembering(on_disk(tmp_path / "file" / "cache.sqlite3")) as api:
            await until(lambda: bool(lost(caplog)))
            assert outcome(await ask(api, CHAT)) == "miss"
            assert outcome(await ask(api, CHAT)) == "hit"

    run(scenario)
    assert len(lost(caplog)) == 1


class FullDatabase(Database):
    """A file on a disk that fills up at the second write."""

    num_writes = 0

    def write(self, *changes: Iterable[object]) -> None:
        self.num_writes += 1
        if self.num_writes > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(*changes)  # type: ignore[arg-type]


def test_a_full_disk_leaves_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cache.sqlite3"
    monkeypatch.setattr(disk.Disk.__init__, "__defaults__", (FullDatabase,))

    async def scenario() -> None:
        async with remembering(on_disk(path)) as api:
            await restored(api)
            number = 0
            while not lost(caplog):
                number += 1
                assert outcome(await ask(api, CHAT, max_tokens=number)) == "miss"
            for n in range(1, number + 1):
                assert outcome(await ask(api, CHAT, max_tokens=n)) == "hit"
            assert outcome(await ask(api, CHAT, max_tokens=number + 1)) == "miss"

    run(scenario)
    assert len(lost(caplog)) == 1
    assert "No space left" in lost(caplog)[0]
    assert rows_of(path)


def test_a_page_limit_is_a_full_disk_to_sqlite(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[list[Row]] = []

    def small(path: Path) -> Database:
        file = Database(path)
        file._connection.execute("PRAGMA max_page_count = 8")
        return file

    mirror = Disk(tmp_path / "cache.sqlite3", heard.append, small)
    mirror.start()
    for number in range(8):
        mirror.put(Row(bytes([number]), bytes(20_000), 0.0, 0.0))
    mirror.close()
    assert heard == [[]]
    assert len(lost(caplog)) == 1
    assert "full" in lost(caplog)[0]
    assert not mirror._waiting, "what cannot be written does not wait for ever"


def test_a_disk_that_hangs_does_not_keep_a_server_from_ending(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_LAST_WRITES_S", 0.05)
    may_go_on = threading.Event()

    class HangingDatabase(Database):
        def write(self, *changes: Iterable[object]) -> None:
            may_go_on.wait()
            super().write(*changes)  # type: ignore[arg-type]

    path = tmp_path / "cache.sqlite3"
    mirror = Disk(path, lambda rows: None, HangingDatabase)
    mirror.start()
    mirror.put(Row(b"k", b"answer", 1.0, 2.0))
    mirror.close()
    assert len(told(caplog, "response_cache_not_closed")) == 1
    may_go_on.set()
    mirror.close()
    assert rows_of(path) == {b"k": Row(b"k", b"answer", 1.0, 2.0)}


def test_another_server_has_the_file_and_then_it_has_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cache.sqlite3"
    monkeypatch.setattr(disk, "_TRY_AGAIN_S", 0.05)
    command = [sys.executable, "-c", HOLD, str(path)]

    async def scenario() -> None:
        with subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"open\n"
            async with remembering(on_disk(path)) as api:
                await until(lambda: bool(told(caplog, "response_cache_disk_in_use")))
                assert outcome(await ask(api, CHAT)) == "miss"
                assert outcome(await ask(api, CHAT)) == "hit"
                assert other.stdin is not None
                other.stdin.close()
                await restored(api)
        assert len(rows_of(path)) == 1

    run(scenario)
    assert len(told(caplog, "response_cache_disk_in_use")) == 1
    assert not lost(caplog)


def test_a_server_that_never_gets_the_file_ends_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite3"

    async def scenario() -> None:
        with closing(Database(path)):
            async with remembering(on_disk(path)) as api:
                assert outcome(await ask(api, CHAT)) == "miss"

    run(scenario)
    assert not rows_of(path)


def test_a_smaller_limit_keeps_what_was_used_last(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite3"

    async def scenario() -> None:
        async with remembering(on_disk(path)) as api:
            for number in (1, 2, 3):
                await ask(api, CHAT, max_tokens=number)
            await ask(api, CHAT, max_tokens=1)
        sizes = {len(row.answer) + ENTRY_BYTES for row in rows_of(path).values()}
        small = on_disk(path, response_cache_bytes=2 * max(sizes))
        async with remembering(small) as api:
            await restored(api)
            outcomes = [outcome(await ask(api, CHAT, max_tokens=n)) for n in (1, 3)]
            assert outcomes == ["hit", "hit"]
            assert outcome(await ask(api, CHAT, max_tokens=2)) == "miss"
            # What has come since took the place of what was not used for longest.
            assert outcome(await ask(api, CHAT, max_tokens=3)) == "hit"
        assert len(rows_of(path)) == 2

    run(scenario)


def test_too_old_an_answer_is_made_anew_and_wiped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cache.sqlite3"
    now = 1000.0
    defaults = ResponseCache.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "clock", lambda: now)

    async def scenario() -> None:
        nonlocal now
        async with remembering(on_disk(path, response_cache_seconds=100.0)) as api:
            cache = api.served.response_cache
            assert cache is not None
            first = await ask(api, CHAT)
            await ask(api, CHAT, max_tokens=1)
            now = 1100.0
            assert outcome(await ask(api, CHAT)) == "hit"
            now = 1100.5
            second = await ask(api, CHAT)
            assert outcome(second) == "miss"
            assert same(first) != same(second)
            assert cache.num_entries == 1
            assert (cache.num_expired, cache.num_evicted) == (2, 0)
        assert [row.created for row in rows_of(path).values()] == [1100.5]
        now = 1201.0
        async with remembering(on_disk(path, response_cache_seconds=100.0)) as api:
            await restored(api)
            assert outcome(await ask(api, CHAT, max_tokens=2)) == "miss"
        assert len(rows_of(path)) == 1

    run(scenario)


def test_a_damaged_entry_is_asked_for_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cache.sqlite3"

    async def scenario() -> None:
        async with remembering(on_disk(path)) as api:
            await ask(api, CHAT)
        (row,) = rows_of(path).values()
        # A token has become another one.
        place = row.answer.index(byte_tokenizer().encode("w")[0], 20)
        fill(path, [row._replace(answer=row.answer[:place] + b"\0" + row.answer[place + 1 :])])
        async with remembering(on_disk(path)) as api:
            await restored(api)
            assert outcome(await ask(api, CHAT)) == "miss"
            assert outcome(await ask(api, CHAT)) == "hit"

    run(scenario)
    assert len(told(caplog, "response_cache_entry_damaged")) == 1


def test_a_replay_that_is_not_whole_ends_with_an_error() -> None:
    async def scenario() -> None:
        requests = make_requests([1], SamplingParams(), request_id="r", info=FakeCore().info)
        kept = KeptDelta.of(0, RequestDelta("other", [5], num_cached_tokens=1))
        stream = Replay([kept]).submit(requests)
        assert (await anext(stream)).request_id == "r-0"
        with pytest.raises(EngineError, match="not whole"):
            await anext(stream)

    run(scenario)


def test_the_file_is_in_the_user_s_cache_unless_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    on = ServerConfig(response_cache=True)
    assert cache_path(on) == tmp_path / "outdraft" / "responses.sqlite3"
    assert cache_path(ServerConfig()) is None
    assert cache_path(ServerConfig(response_cache=True, response_cache_path="memory")) is None
    home = cache_path(ServerConfig(response_cache=True, response_cache_path="~/x"))
    assert home == Path.home() / "x"


def told(caplog: pytest.LogCaptureFixture, event: str) -> list[str]:
    """Give the lines of one event."""
    lines = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
    return [line for line in lines if line.startswith(event)]


def lost(caplog: pytest.LogCaptureFixture) -> list[str]:
    return told(caplog, "response_cache_disk_lost")
