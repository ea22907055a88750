"""Files as OpenAI's client sees them: found by their owner's key, not by what callers say."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from server.batches.data_dir import DataDir, DataDirError, NoDataDir, find_data_dir
from server.batches.service import Pace
from server.config import ServerConfig
from tests.server.batch_server import Batches, batching, chat_line, chats, jsonl, run
from tests.server.harness import error_of, saying, serving
from tests.server.test_openapi import check_answer, page_of

UNFINISHED = b"--b\r\ncontent-disposition: form-data; name=file\r\n\r\nx"
SECONDS = "expires_after[seconds]"
KEYED = ServerConfig(api_key=("key-a", "key-b"), admin_key=("key-admin",))


async def upload(server: Batches, content: bytes = b"x", name: str = "in.jsonl") -> str:
    made = await server.openai.files.create(file=(name, content), purpose="batch")
    return made.id


def test_a_file_is_kept_as_it_came(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000

    async def scenario() -> None:
        async with batching(tmp_path) as server:
            made = await server.openai.files.create(file=("é.jsonl", content), purpose="batch")
            assert (made.bytes, made.filename, made.purpose) == (len(content), "é.jsonl", "batch")
            assert (made.object, made.status, made.expires_at) == ("file", "processed", None)
            assert await server.openai.files.retrieve(made.id) == made
            read = await server.openai.files.content(made.id)
            assert read.content == content
            deleted = await server.openai.files.delete(made.id)
            assert (deleted.id, deleted.deleted) == (made.id, True)
            with pytest.raises(openai.NotFoundError):
                await server.openai.files.content(made.id)
            assert list((tmp_path / "files").iterdir()) == []
            assert list((tmp_path / "uploads").iterdir()) == []

    run(scenario)


def test_files_are_listed_page_by_page(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batching(tmp_path) as server:
            made = [await upload(server) for _ in range(5)]
            files = server.openai.files
            assert [file.id async for file in files.list(limit=2)] == made[::-1]
            assert [file.id async for file in files.list(limit=2, order="asc")] == made
            page = await files.list(limit=2, order="asc", after=made[1])
            assert ([file.id for file in page.data], page.has_more) == (made[2:4], True)
            assert (await files.list(purpose="batch_output")).data == []
            with pytest.raises(openai.NotFoundError):
                await files.list(after="file-1")

    run(scenario)


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"file": "x", "purpose": "fine-tune"}, "purpose"),
        ({"file": "x", "purpose": "batch_output"}, "purpose"),
        ({"file": "x"}, "purpose"),
        ({"purpose": "batch"}, "file"),
        ({"file": "x", "purpose": "batch", "colour": "red"}, "colour"),
        ({"file": "x", "purpose": "batch", SECONDS: "5"}, SECONDS),
        ({"file": "x", "purpose": "x" * 5000}, "purpose"),
    ],
)
def test_forms_that_cannot_be_honoured_are_refused_by_name(
    tmp_path: Path, form: dict[str, str], param: str
) -> None:
    async def scenario() -> None:
        async with batching(tmp_path) as server:
            given = {name: (None, value) for name, value in form.items()}
            response = await server.api.http.post("/v1/files", files=given)
            assert error_of(response)["param"] == param
            check_answer(await page_of(server.api), response, "/v1/files")
            assert list((tmp_path / "uploads").iterdir()) == []
            assert list((tmp_path / "files").iterdir()) == []

    run(scenario)


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "application/json", 415),
        (b"--b\r\n", "multipart/form-data", 415),
        (b"nonsense", "multipart/form-data; boundary=b", 400),
        (UNFINISHED, "multipart/form-data; boundary=b", 400),
        (b"--b\r\n\r\nx\r\n--b--\r\n", "multipart/form-data; boundary=b", 400),
    ],
)
def test_what_is_no_form_is_refused(tmp_path: Path, body: bytes, kind: str, status: int) -> None:
    async def scenario() -> None:
        async with batching(tmp_path) as server:
            headers = {"content-type": kind}
            response = await server.api.http.post("/v1/files", content=body, headers=headers)
            error_of(response, status)
            assert list((tmp_path / "uploads").iterdir()) == []

    run(scenario)


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batching(tmp_path, config=ServerConfig(max_file_bytes=1000)) as server:
            await upload(server, b"x" * 1000)
            for size in (1001, 3_000_000):
                with pytest.raises(openai.APIStatusError, match="1000 bytes at most") as caught:
                    await upload(server, b"x" * size)
                assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")
            assert list((tmp_path / "uploads").iterdir()) == []

    run(scenario)


def test_a_key_may_keep_so_much_and_no_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batching(tmp_path, config=ServerConfig(max_stored_bytes=1500)) as server:
            first = await upload(server, b"x" * 1000)
            with pytest.raises(openai.BadRequestError, match="1500 may be") as caught:
                await upload(server, b"x" * 1000)
            assert caught.value.code == "storage_quota_exceeded"
            await server.openai.files.delete(first)
            await upload(server, b"x" * 1000)

    run(scenario)


def test_one_key_never_sees_what_another_has(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batching(tmp_path, config=KEYED, key="key-a") as server:
            batch = await server.run(chats(2))
            ours = [batch.input_file_id, str(batch.output_file_id)]
            for key in ("key-b", "key-admin"):
                other = server.as_caller(key)
                assert (await other.files.list()).data == []
                assert (await other.batches.list()).data == []
                for file_id in ours:
                    for call in (other.files.retrieve, other.files.content, other.files.delete):
                        with pytest.raises(openai.NotFoundError):
                            await call(file_id)
                for call in (other.batches.retrieve, other.batches.cancel):
                    with pytest.raises(openai.NotFoundError):
                        await call(batch.id)
                with pytest.raises(openai.NotFoundError):
                    await other.batches.create(
                        input_file_id=ours[0],
                        endpoint="/v1/chat/completions",
                        completion_window="24h",
                    )
            assert len((await server.openai.files.list()).data) == 2
            with pytest.raises(openai.AuthenticationError):
                await server.as_caller("wrong").files.list()

    run(scenario)


def test_a_key_opens_after_a_restart_what_it_opened_before(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batching(tmp_path, config=KEYED, key="key-a") as server:
            batch = await server.run(chats(2))
        async with batching(tmp_path, config=KEYED, key="key-a") as server:
            assert await server.openai.batches.retrieve(batch.id) == batch
            assert len(await server.lines_of(batch.output_file_id)) == 2
            with pytest.raises(openai.NotFoundError):
                await server.as_caller("key-b").batches.retrieve(batch.id)

    run(scenario)


def test_no_id_of_a_caller_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("secret")

    async def scenario() -> None:
        async with batching(tmp_path / "data") as server:
            for name in ("..%2Foutside", "..%2f..%2foutside", "%2Fetc%2Fpasswd", "..", "secret"):
                for path in (f"/v1/files/{name}", f"/v1/files/{name}/content"):
                    response = await server.api.http.get(path)
                    assert response.status_code == 404, path
                    assert "root:" not in response.text
            odd = await upload(server, b"x", "../../etc/passwd")
            assert [path.name for path in (tmp_path / "data/files").iterdir()] == [odd]

    run(scenario)


def test_a_file_that_a_batch_reads_is_not_deleted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batching(tmp_path, saying("x" * 6)) as server:
            server.api.engine.is_paused = True
            batch = await server.create(chats(3))
            with pytest.raises(openai.BadRequestError, match=batch.id):
                await server.openai.files.delete(batch.input_file_id)
            server.api.engine.is_paused = False
            server.api.engine._work.set()
            await server.ended(batch.id)
            await server.openai.files.delete(batch.input_file_id)

    run(scenario)


def test_files_end_when_their_time_is_over(tmp_path: Path) -> None:
    now = [time.time()]
    pace = Pace(now=lambda: now[0], look_s=0.01)

    async def scenario() -> None:
        async with batching(tmp_path, pace=pace) as server:
            made = await server.openai.files.create(
                file=("in", jsonl([chat_line("a")])),
                purpose="batch",
                expires_after={"anchor": "created_at", "seconds": 3600},
            )
            assert made.expires_at == made.created_at + 3600
            batch = await server.run(
                chats(1), output_expires_after={"anchor": "created_at", "seconds": 7200}
            )
            now[0] += 3601
            while made.id in {file.id for file in (await server.openai.files.list()).data}:
                await asyncio.sleep(0.01)
            assert len(await server.lines_of(batch.output_file_id)) == 1
            now[0] += 3600
            while (await server.openai.files.list(purpose="batch_output")).data:
                await asyncio.sleep(0.01)

    run(scenario)


def test_pages_of_others_cannot_upload(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batching(tmp_path) as server:
            form: Any = {"data": {"purpose": "batch"}, "files": {"file": ("in", b"x")}}
            post = server.api.http.post
            headers = {"origin": "http://evil.example"}
            response = await post("/v1/files", headers=headers, **form)
            assert error_of(response, 403)["code"] == "wrong_origin"
            headers = {"origin": "http://localhost"}
            assert (await post("/v1/files", headers=headers, **form)).status_code == 200

    run(scenario)


def test_answers_are_as_the_page_describes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batching(tmp_path) as server:
            http, page = server.api.http, await page_of(server.api)
            batch = await server.run(jsonl([chat_line("a"), b"{"]))
            for path in (f"files/{batch.input_file_id}", "files", f"batches/{batch.id}", "batches"):
                response = await http.get(f"/v1/{path}")
                described = path.replace(batch.id, "{batch_id}")
                described = described.replace(batch.input_file_id, "{file_id}")
                check_answer(page, response, f"/v1/{described}")

    run(scenario)


def test_a_server_without_a_folder_says_so() -> None:
    async def scenario() -> None:
        async with serving() as api:
            page = await page_of(api)
            for path in ("/v1/files", "/v1/batches"):
                response = await api.http.get(path)
                assert error_of(response, 503)["code"] == "data_dir_unavailable"
                check_answer(page, response, path)
            assert (await api.chat()).status_code == 200

    run(scenario)


def test_two_servers_do_not_share_a_folder(tmp_path: Path) -> None:
    first = DataDir(tmp_path / "data")
    with pytest.raises(DataDirError, match="in use by another server"):
        find_data_dir(str(tmp_path / "data"))
    first.close()
    again = DataDir(tmp_path / "data")
    assert again.secret == first.secret
    again.close()


def test_a_folder_is_its_owners_alone(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path / "a" / "b")
    data_dir.close()
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "a/b").iterdir()}
    assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o700
    assert modes == {"lock": 0o600, "secret": 0o600, "files": 0o700, "uploads": 0o700}


def test_a_folder_that_cannot_be_made_is_refused_if_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataDirError, match="cannot be used"):
        find_data_dir(str(tmp_path / "file" / "data"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    found = find_data_dir(None)
    assert isinstance(found, NoDataDir)
    assert "cannot be used" in found.reason
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "other"))
    made = find_data_dir(None)
    assert isinstance(made, DataDir)
    assert made.path == tmp_path / "other" / "outdraft"
    made.close()
