"""`outdraft batch` over lines of OpenAI's batch API: rows, errors, statuses, and going on."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ConfigError, EngineDeadError, OutdraftError
from server.batches.lines import BatchLine
from server.batches.output import LineAnswer
from server.cli.main import main
from tests.server.batch_command import batch, chat_line, read_lines, write_lines
from tests.server.harness import Api, serving
from tests.server.harness import run as run_scenario

UNSTABLE = {"id", "created", "system_fingerprint"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Ten lines that can be answered."""
    return write_lines(tmp_path / "in.jsonl", [chat_line(f"r{i}", seed=i) for i in range(10)])


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def ids(path: Path) -> list[str]:
    return [row["custom_id"] for row in read_lines(path)]


def test_rows_hold_what_the_routes_answer(tmp_path: Path, output: Path) -> None:
    lines = [
        chat_line("chat", temperature=0.5, seed=1, n=2),
        chat_line("wrong", no_such_field=1),
        {
            "custom_id": "text",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": "tiny", "prompt": "abc", "max_tokens": 5, "seed": 2},
        },
    ]
    ended = batch(write_lines(tmp_path / "in.jsonl", lines), output)
    assert ended.status == 1
    rows = {row["custom_id"]: row for row in read_lines(output)}

    async def scenario() -> None:
        async with serving() as api:
            for line in lines:
                await _compare(api, line, rows[line["custom_id"]])

    run_scenario(scenario)


async def _compare(api: Api, line: dict[str, Any], row: dict[str, Any]) -> None:
    answer = await api.http.post(line["url"], json=line["body"])
    assert row["response"]["status_code"] == answer.status_code
    told, expected = row["response"]["body"], answer.json()
    stable = {name: value for name, value in told.items() if name not in UNSTABLE}
    assert stable == {name: value for name, value in expected.items() if name not in UNSTABLE}
    assert (row["error"] is None) == (answer.status_code == 200)


def test_all_answered_is_status_0(source: Path, output: Path) -> None:
    ended = batch(source, output)
    assert ended.status == 0
    assert sorted(ids(output)) == sorted(f"r{i}" for i in range(10))
    assert "10 answered, 0 failed; 40 tokens" in ended.told
    assert "tokens per target pass" in ended.told
    assert "cost" not in ended.told


def test_the_price_of_an_hour_tells_the_cost(source: Path, output: Path) -> None:
    told = batch(source, output, "--price-per-hour", "3600").told
    found = re.search(r"^cost (\S+), (\S+) per million answer tokens$", told, re.MULTILINE)
    assert found is not None
    # The clock goes on between the two numbers.
    assert float(found[2]) == pytest.approx(float(found[1]) / 40 * 1e6, rel=0.1)
    assert float(found[1]) > 0


def test_broken_lines_are_told_by_number_and_the_rest_goes_on(tmp_path: Path, output: Path) -> None:
    lines = [
        chat_line("a"),
        "{broken",
        "",
        "[1]",
        {"custom_id": "b", "method": "GET", "url": "/v1/chat/completions", "body": {}},
        chat_line("a"),
        chat_line("c"),
    ]
    ended = batch(write_lines(tmp_path / "in.jsonl", lines), output)
    assert ended.status == 1
    errors = {
        row["error"]["line"]: (row["custom_id"], row["error"]["code"])
        for row in read_lines(output)
        if row["error"]
    }
    assert errors == {
        2: (None, "invalid_json_line"),
        4: (None, "invalid_json_line"),
        5: ("b", "invalid_method"),
        6: ("a", "duplicate_custom_id"),
    }
    assert set(ended.asked) == {"a", "c"}
    assert "2 x invalid_json_line" in ended.told


def test_goes_on_where_it_ended_and_redoes_a_torn_row(source: Path, output: Path) -> None:
    batch(source, output, "--ordered")
    whole = output.read_bytes()
    lines = whole.splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:4]) + lines[4][:50])
    ended = batch(source, output)
    assert ended.status == 0
    assert sorted(ended.asked) == [f"r{i}" for i in range(4, 10)]
    assert output.read_bytes().splitlines(keepends=True)[:4] == lines[:4]
    assert sorted(ids(output)) == sorted(f"r{i}" for i in range(10))
    assert ", 4 before" in ended.told


def test_nothing_is_loaded_when_nothing_is_left(tmp_path: Path, output: Path) -> None:
    lines = [chat_line("a"), chat_line("a"), "{", chat_line("b", no_such_field=1)]
    source = write_lines(tmp_path / "in.jsonl", lines)
    batch(source, output)
    before = output.read_bytes()

    async def never(_line: BatchLine) -> LineAnswer:
        raise AssertionError("nothing is to be asked")

    ended = batch(source, output, ask=never)
    assert ended.status == 1, "the failures are still there"
    assert output.read_bytes() == before
    assert "4 before" in ended.told
    assert "1 x duplicate_custom_id before" in ended.told


def passing_row(custom_id: str, status: int = 503) -> str:
    body = {"error": {"code": "engine_dead", "type": "server_error", "message": "", "param": None}}
    response = {"status_code": status, "request_id": "r", "body": body}
    error = {"code": "engine_dead", "message": "", "param": None, "line": 1}
    row = {"id": "x", "custom_id": custom_id, "response": response, "error": error}
    return json.dumps(row)


@pytest.mark.parametrize(("status", "is_redone"), [(503, True), (504, True), (400, False)])
def test_only_failures_that_may_be_over_are_redone(
    source: Path, output: Path, status: int, is_redone: bool
) -> None:
    write_lines(output, [passing_row("r0", 400), passing_row("r1", status), passing_row("r2", 400)])
    ended = batch(source, output)
    assert ("r1" in ended.asked) is is_redone
    assert not {"r0", "r2"} & set(ended.asked)
    assert sorted(ids(output)) == sorted(f"r{i}" for i in range(10))
    assert not output.with_name("out.jsonl.resuming").exists()


def test_ordered_rows_stay_ordered_over_a_redone_one(source: Path, output: Path) -> None:
    write_lines(output, [passing_row("r0", 400), passing_row("r1"), passing_row("r2", 400)])
    batch(source, output, "--ordered")
    assert ids(output) == [f"r{i}" for i in range(10)]


def test_an_existing_output_can_be_refused_or_begun_anew(source: Path, output: Path) -> None:
    batch(source, output)
    before = output.read_bytes()
    with pytest.raises(ConfigError, match=r"output: .*exists.*--resume.*--overwrite"):
        batch(source, output, "--no-resume")
    assert output.read_bytes() == before
    ended = batch(source, output, "--overwrite")
    assert len(ended.asked) == 10
    assert len(read_lines(output)) == 10
    output.unlink()
    assert batch(source, output, "--no-resume").status == 0


def test_a_file_of_somebody_else_is_left_alone(source: Path, output: Path) -> None:
    output.write_text('{"my": "data"}\nmore')
    with pytest.raises(ConfigError, match="line 1 of .* was not written by this command"):
        batch(source, output)
    assert output.read_text() == '{"my": "data"}\nmore'


def test_two_runs_do_not_write_to_one_file(source: Path, output: Path) -> None:
    async def ask(_line: BatchLine) -> LineAnswer:
        with pytest.raises(ConfigError, match="another process writes"):
            await asyncio.to_thread(batch_elsewhere)
        return LineAnswer(400, "r", b'{"error":{"code":"x","type":"y","message":"","param":null}}')

    def batch_elsewhere() -> None:
        from server.offline.line_file import LineFile

        LineFile(output)

    write_lines(source, [chat_line("only")])
    assert batch(source, output, ask=ask).status == 1


def test_rows_are_in_order_when_asked_for(source: Path, output: Path) -> None:
    answered: list[int] = []

    async def ask(line: BatchLine) -> LineAnswer:
        # Those that are asked first are answered last.
        while line.number < 10 and line.number + 1 not in answered:
            await asyncio.sleep(0.001)
        answered.append(line.number)
        return LineAnswer(200, "r", b"{}")

    batch(source, output, ask=ask)
    assert ids(output) == [f"r{i}" for i in reversed(range(10))]
    answered.clear()
    batch(source, output, "--overwrite", "--ordered", ask=ask)
    assert answered == list(range(10, 0, -1))
    assert ids(output) == [f"r{i}" for i in range(10)]


def test_a_full_disk_loses_nothing_that_is_done(
    source: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, room = os.write, [1500]

    def full(fd: int, data: bytes) -> int:
        part = data[: room[0]]
        if not part:
            raise OSError(28, "No space left on device")
        room[0] -= len(part)
        return write(fd, part)

    with monkeypatch.context() as patch:
        patch.setattr("server.offline.line_file.os.write", full)
        ended = batch(source, output)
    assert ended.status == 1
    assert "No space left on device" in ended.told
    assert "To go on: outdraft" in ended.told
    done = ids(output)
    assert 0 < len(done) < 10
    assert output.read_bytes().endswith(b"\n")
    ended = batch(source, output)
    assert ended.status == 0
    assert not set(ended.asked) & set(done)
    assert sorted(ids(output)) == sorted(f"r{i}" for i in range(10))


def test_an_engine_that_is_gone_ends_the_run_and_keeps_what_is_done(
    source: Path, output: Path
) -> None:
    async def ask(line: BatchLine) -> LineAnswer:
        if line.number <= 3:
            return LineAnswer(200, "r", b"{}")
        await asyncio.sleep(0.05)
        raise EngineDeadError("The engine is gone.")

    ended = batch(source, output, ask=ask)
    assert ended.status == 1
    assert "EngineDeadError: The engine is gone." in ended.told
    assert sorted(ids(output)) == ["r0", "r1", "r2"]
    assert batch(source, output).status == 0


def test_an_engine_that_is_gone_at_once_is_raised(source: Path, output: Path) -> None:
    async def ask(_line: BatchLine) -> LineAnswer:
        raise EngineDeadError("The engine is gone.")

    with pytest.raises(EngineDeadError):
        batch(source, output, ask=ask)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--temperature", "0"], "temperature: it goes with --template"),
        (["--json-schema", "{}"], "json_schema: it goes with --template"),
        (["--template", "{{"], "template: line 1"),
        (["--template", "@nothing.txt"], "template: cannot read nothing.txt"),
        (["--template", "x", "--completion", "--system", "y"], "system: a text"),
        (["--template", "x", "--json-schema", "{"], "json_schema: it is no JSON"),
        (["--template", "x", "--json-schema", '{"type": "nothing"}'], "json_schema"),
        (["--template", "x", "--top-p", "7"], "top_p"),
        (["--max-in-flight", "0"], "max_in_flight: 0 is below 1"),
        (["--price-per-hour", "-1"], "price_per_hour"),
        (["--resume", "--overwrite"], "overwrite"),
        (["--output-format", "csv", "-o", "-"], "output_format: csv is written to a file"),
        (["-o", "-", "--overwrite"], "overwrite: the standard output"),
        (["-i", "nothing.jsonl"], "input: cannot read nothing.jsonl"),
        (["-i", "-", "--input-format", "parquet"], "input_format: Parquet is read from a file"),
        (["-o", "."], "it is a folder"),
    ],
)
def test_what_cannot_be_done_is_refused_with_status_2(
    source: Path,
    output: Path,
    words: list[str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["batch", "-i", str(source), "-o", str(output), *words]) == 2
    assert complaint in " ".join(capsys.readouterr().err.split())


def test_an_output_that_is_the_input_is_refused(source: Path) -> None:
    before = source.read_bytes()
    with pytest.raises(OutdraftError, match="output: it is the input"):
        batch(source, source)
    assert source.read_bytes() == before
