"""What a batch survives: ends of the server in the middle, a full disk, its own time."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from engine.errors import EngineDeadError
from server.batches import journal
from server.batches.data_dir import DataDirError
from server.batches.database import MIGRATIONS, Database
from server.batches.service import Pace
from server.config import ServerConfig
from tests.server.batch_server import Batches, batching, chats, run
from tests.server.harness import error_of, saying
from tests.server.test_batches import has_begun

SLOW = saying("x" * 6)
TWO = ServerConfig(batch_concurrency=2)


async def check_all_once(server: Batches, batch_id: str, number: int) -> None:
    """Every line was answered, and stands in the file once."""
    batch = await server.ended(batch_id)
    assert (batch.status, batch.error_file_id) == ("completed", None)
    lines = await server.lines_of(batch.output_file_id)
    assert set(lines) == {f"line-{place}" for place in range(number)}
    assert batch.request_counts is not None
    assert batch.request_counts.completed == number


def test_a_batch_goes_on_where_its_server_ended(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batching(tmp_path, SLOW, config=TWO) as server:
            batch = await server.create(chats(60))
            begun = await server.until(batch.id, has_begun)
        async with batching(tmp_path, SLOW, config=TWO) as server:
            again = await server.openai.batches.retrieve(batch.id)
            assert again.status == "in_progress"
            assert begun.request_counts is not None
            assert again.request_counts is not None
            assert again.request_counts.completed >= begun.request_counts.completed
            await check_all_once(server, batch.id, 60)
            asked = server.api.served.admission
            assert (asked.num_waiting, asked.num_begun) == (0, 0)

    run(scenario)


def test_what_was_written_and_not_told_is_cut_off(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batching(tmp_path, SLOW, config=TWO) as server:
            batch = await server.create(chats(40))
            await server.until(batch.id, has_begun)
        database = sqlite3.connect(tmp_path / "batches.sqlite3")
        file_id, good = database.execute("SELECT output_id, output_bytes FROM batches").fetchone()
        database.close()
        path = tmp_path / "files" / file_id
        assert path.stat().st_size == good
        with path.open("ab") as file:
            file.write(b'{"custom_id": "line-99", "half a li')
        async with batching(tmp_path, SLOW, config=TWO) as server:
            await check_all_once(server, batch.id, 40)

    run(scenario)


@pytest.mark.parametrize("step", ["validating", "finalizing", "cancelling"])
def test_a_batch_goes_on_from_every_status(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends in that status, and the next one ends the batch as it should."""

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    async def scenario() -> None:
        with monkeypatch.context() as patch:
            if step == "validating":
                patch.setattr("server.batches.ending.Endings.begin", never)
            else:
                patch.setattr("server.batches.batch_store.BatchStore.finish", never)
            async with batching(tmp_path) as server:
                batch = await server.create(chats(5))
                if step == "cancelling":
                    await server.openai.batches.cancel(batch.id)
                await server.until(batch.id, lambda found: found.status == step)
        async with batching(tmp_path) as server:
            ended = await server.ended(batch.id)
            assert ended.status == ("cancelled" if step == "cancelling" else "completed")
            if step != "cancelling":
                await check_all_once(server, batch.id, 5)

    run(scenario)


def test_time_that_is_over_ends_a_batch_with_what_is_done(tmp_path: Path) -> None:
    now = [time.time()]
    pace = Pace(now=lambda: now[0], look_s=0.01)

    async def scenario() -> None:
        async with batching(tmp_path, SLOW, config=TWO, pace=pace) as server:
            batch = await server.create(chats(100), completion_window="90m")
            assert batch.expires_at == batch.created_at + 90 * 60
            await server.until(batch.id, has_begun)
            now[0] += 90 * 60 - 2
            assert (await server.openai.batches.retrieve(batch.id)).status == "in_progress"
            now[0] += 3
            ended = await server.ended(batch.id)
            assert (ended.status, ended.expired_at) == ("expired", int(now[0]))
            done = await server.lines_of(ended.output_file_id)
            left = await server.lines_of(ended.error_file_id)
            assert set(done) | set(left) == {f"line-{place}" for place in range(100)}
            assert not set(done) & set(left)
            assert {line["error"]["code"] for line in left.values()} == {"batch_expired"}
            assert {line["response"] for line in left.values()} == {None}
            assert server.api.engine.num_open == 0

    run(scenario)


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_pauses_a_batch_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with batching(tmp_path, SLOW, config=TWO) as server:
            batch = await server.create(chats(40))
            await server.until(batch.id, has_begun)
            with monkeypatch.context() as patch:
                patch.setattr(journal, "write_through", full)
                paused = await server.until(batch.id, lambda found: hasattr(found, "paused"))
                assert "disk is full" in paused.paused  # type: ignore[attr-defined]
                stands = paused.request_counts
                # Whoever works goes on until its answer waits for the disk, and not further.
                while server.api.engine.num_open:
                    await asyncio.sleep(0.01)
                assert (await server.openai.batches.retrieve(batch.id)).request_counts == stands
                metrics = (await server.api.http.get("/metrics")).text
                assert 'outdraft:batches_paused{model_name="tiny"} 1.0' in metrics
            await check_all_once(server, batch.id, 40)
            assert not hasattr(await server.openai.batches.retrieve(batch.id), "paused")

    run(scenario)


def test_an_upload_to_a_full_disk_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with batching(tmp_path) as server:
            with monkeypatch.context() as patch:
                patch.setattr("server.batches.upload.write_through", full)
                files = {"purpose": (None, "batch"), "file": ("in", b"x")}
                response = await server.api.http.post("/v1/files", files=files)
                error = error_of(response, 507)
            assert (error["code"], error["type"]) == ("storage_full", "server_error")
            assert list((tmp_path / "uploads").iterdir()) == []
            await server.run(chats(1))

    run(scenario)


def test_a_database_that_cannot_be_written_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with batching(tmp_path) as server:
            batch = await server.run(chats(1))
            with monkeypatch.context() as patch:
                patch.setattr("server.batches.file_store.insert_file", full)
                with pytest.raises(openai.InternalServerError, match="disk is full") as caught:
                    await server.create(chats(1))
                assert caught.value.status_code == 507
            names = {path.name for path in (tmp_path / "files").iterdir()}
            assert names == {batch.input_file_id, batch.output_file_id}

    run(scenario)


def test_a_server_that_ends_asks_nothing_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batching(tmp_path, SLOW, config=TWO) as server:
            batch = await server.create(chats(60))
            await server.until(batch.id, has_begun)
            server.api.engine.drain()
            await server.service.stop()
            assert server.api.engine.num_open == 0
            stands = await server.openai.batches.retrieve(batch.id)
            assert stands.status == "in_progress"
        async with batching(tmp_path, SLOW, config=TWO) as server:
            await check_all_once(server, batch.id, 60)

    run(scenario)


def test_an_engine_that_is_gone_halts_a_batch_which_can_be_cancelled(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batching(tmp_path, SLOW, config=TWO) as server:
            batch = await server.create(chats(60))
            await server.until(batch.id, has_begun)
            server.api.engine._die(EngineDeadError("gone"))
            halted = await server.until(batch.id, lambda found: hasattr(found, "paused"))
            assert halted.status == "in_progress"
            await server.openai.batches.cancel(batch.id)
            assert (await server.ended(batch.id)).status == "cancelled"

    run(scenario)


def test_lines_of_a_key_that_is_gone_are_not_asked(tmp_path: Path) -> None:
    async def scenario() -> None:
        both = ServerConfig(api_key=("key-a", "key-b"), batch_concurrency=2)
        async with batching(tmp_path, SLOW, config=both, key="key-a") as server:
            batch = await server.create(chats(60))
            await server.until(batch.id, has_begun)
        async with batching(tmp_path, SLOW, config=ServerConfig(api_key=("key-b",))) as server:
            rows = await server.service.batches.open_batches()
            while "key opens this server no longer" not in str(server.service.shown(rows[0])):
                await asyncio.sleep(0.01)
        async with batching(tmp_path, SLOW, config=both, key="key-a") as server:
            await check_all_once(server, batch.id, 60)

    run(scenario)


def test_what_no_row_names_is_swept_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batching(tmp_path) as server:
            batch = await server.run(chats(1))
        (tmp_path / "files" / "file-lost").write_bytes(b"x")
        (tmp_path / "uploads" / "half").write_bytes(b"x")
        async with batching(tmp_path) as server:
            names = {path.name for path in (tmp_path / "files").iterdir()}
            assert names == {batch.input_file_id, batch.output_file_id}
            assert list((tmp_path / "uploads").iterdir()) == []
            await server.lines_of(batch.output_file_id)

    run(scenario)


def test_a_database_of_a_newer_server_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    Database(path).close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)
    assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(DataDirError, match="newer version"):
        Database(path)
