"""`outdraft batch` from and to CSV and Parquet."""

from __future__ import annotations

import csv
import json
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ConfigError
from server.batches.lines import BatchLine
from server.batches.output import LineAnswer
from tests.server.batch_command import batch, chat_line, read_lines, write_lines
from tests.server.harness import saying

FLAGS = ("--template", "{{ text }}", "--max-tokens", "4")
ERROR = b'{"error":{"code":"engine_dead","type":"server_error","message":"m","param":null}}'


def write_csv(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def read_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_of_csv_are_answered_in_their_order(tmp_path: Path) -> None:
    text = '\ufeffid,text,note\r\na,"two\r\nlines","say ""x"""\r\nb,ü,\r\n'
    source, output = write_csv(tmp_path / "in.csv", text), tmp_path / "out.csv"
    assert batch(source, output, *FLAGS).status == 0
    first, second = read_csv(output)
    assert list(first) == ["id", "text", "note", "output", "output_info"]
    assert (first["text"], first["note"]) == ("two\r\nlines", 'say "x"')
    assert (second["id"], second["text"], second["output"]) == ("b", "ü", ">tna")
    assert json.loads(second["output_info"])["finish_reason"] == "length"
    assert not list(tmp_path.glob("*.rows.jsonl"))


def test_broken_rows_of_csv_are_told_by_number(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "in.csv", "id,text\na,b\nc\n\nd,e,f\ng,h\n")
    output = tmp_path / "out.jsonl"
    assert batch(source, output, *FLAGS, "--ordered").status == 1
    rows = read_lines(output)
    assert [row.get("id") for row in rows] == ["a", None, None, "g"]
    assert rows[1]["output_error"]["message"] == "Line 2: The row has 1 values, the header 2."
    assert rows[2]["output_error"]["line"] == 3


def test_columns_of_openais_lines_need_no_template(tmp_path: Path) -> None:
    line = chat_line("a")
    source = tmp_path / "in.csv"
    with source.open("w", newline="") as file:
        writer = csv.DictWriter(file, line)
        writer.writeheader()
        writer.writerow(line | {"body": json.dumps(line["body"])})
        writer.writerow(line | {"custom_id": "b", "body": "nothing"})
    output = tmp_path / "out.csv"
    assert batch(source, output).status == 1
    good, bad = read_csv(output)
    assert json.loads(good["response"])["body"]["choices"]
    assert (bad["custom_id"], bad["response"]) == ("b", "")
    assert "body" in json.loads(bad["error"])["message"]


def test_a_complete_table_is_left_alone(tmp_path: Path) -> None:
    source, output = write_csv(tmp_path / "in.csv", "text\na\n"), tmp_path / "out.csv"
    batch(source, output, *FLAGS)
    before = output.read_bytes()
    ended = batch(source, output, *FLAGS)
    assert (ended.status, ended.asked, output.read_bytes()) == (0, (), before)
    assert "is complete; --overwrite starts anew" in ended.told
    with pytest.raises(ConfigError, match="exists"):
        batch(source, output, *FLAGS, "--no-resume")
    assert len(batch(source, output, *FLAGS, "--overwrite").asked) == 1


def test_a_table_goes_on_from_its_rows(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "in.csv", "text\n" + "".join(f"t{i}\n" for i in range(6)))
    output, rows = tmp_path / "out.csv", tmp_path / "out.csv.rows.jsonl"

    async def ask(line: BatchLine) -> LineAnswer:
        return LineAnswer(503 if line.number == 2 else 400, "r", ERROR)

    ended = batch(source, output, *FLAGS, ask=ask)
    assert ended.status == 1
    assert len(read_csv(output)) == 6
    assert rows.exists(), "one of them may be answered another time"
    ended = batch(source, output, *FLAGS)
    assert ended.asked == ("2",)
    table = read_csv(output)
    assert [row["id"] for row in table] == [str(i) for i in range(1, 7)]
    assert [bool(row["output"]) for row in table] == [i == 1 for i in range(6)]
    assert not rows.exists()


def test_parquet_keeps_the_types_of_its_columns(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {
        "text": ["a", "b", "c"],
        "when": arrow.array([datetime(2026, 1, 2, 3, tzinfo=UTC), None, None]),
        "price": arrow.array([Decimal("1.50"), Decimal("2.25"), None]),
        "raw": [b"\x00\xff", b"", None],
        "small": arrow.array([1, 2, 3], arrow.int8()),
        "words": [["x"], [], None],
        "inner": [{"a": 1, "b": "z"}, None, {"a": None, "b": "y"}],
        "empty": arrow.array([None, None, None], arrow.float32()),
        "day": arrow.array([datetime(2026, 1, 2).date(), None, None]),
    }
    table = arrow.table(columns)
    source, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    parquet.write_table(table, source, row_group_size=2)
    assert batch(source, output, *FLAGS).status == 0
    result = parquet.read_table(output)
    assert result.column_names == ["id", *columns, "output", "output_info"]
    for name in columns:
        assert result.schema.field(name).type == table.schema.field(name).type, name
        assert result[name].to_pylist() == table[name].to_pylist(), name
    assert result["output"].to_pylist() == [">tna"] * 3
    assert json.loads(result["output_info"][0].as_py())["usage"]["completion_tokens"] == 4


def test_parsed_answers_are_structs_of_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    source, output = write_csv(tmp_path / "in.csv", "text\na\n"), tmp_path / "out.parquet"
    flags = ("--template", "{{ text }}", "--json-schema", '{"type": "object"}')
    answer = saying('{"a": 5, "b": ["x"]}')
    assert batch(source, output, *flags, "--max-tokens", "40", answer=answer).status == 0
    assert parquet.read_table(output)["output"].to_pylist() == [{"a": 5, "b": ["x"]}]


def test_values_without_a_common_type_are_json_text(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    records = [{"text": "a", "odd": 1}, {"text": "b", "odd": "x"}, {"text": "c"}]
    source, output = write_lines(tmp_path / "in.jsonl", records), tmp_path / "out.parquet"
    assert batch(source, output, *FLAGS).status == 0
    assert parquet.read_table(output)["odd"].to_pylist() == ["1", "x", None]


def test_many_rows_are_many_row_groups_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("server.offline.tables._ROWS_PER_GROUP", 4)
    # A type that shows only in the last group.
    records = [{"text": "a", "n": i if i < 9 else 0.5} for i in range(10)]
    source, output = write_lines(tmp_path / "in.jsonl", records), tmp_path / "out.parquet"
    batch(source, output, *FLAGS)
    assert parquet.ParquetFile(output).num_row_groups == 3
    table = parquet.read_table(output)
    assert table["n"].to_pylist() == [*map(float, range(9)), 0.5]
    assert table["id"].to_pylist() == list(range(1, 11))


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    source = write_csv(tmp_path / "in.csv", "text\na\n")
    with pytest.raises(ConfigError, match=r"pip install 'outdraft\[tables\]'"):
        batch(source, tmp_path / "out.parquet", *FLAGS)
    with pytest.raises(ConfigError, match=r"pip install 'outdraft\[tables\]'"):
        batch(tmp_path / "in.parquet", tmp_path / "out.jsonl", *FLAGS)
    assert batch(source, tmp_path / "out.csv", *FLAGS).status == 0


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    source = write_csv(tmp_path / "in.parquet", "text\na\n")
    with pytest.raises(ConfigError, match="is no Parquet file"):
        batch(source, tmp_path / "out.jsonl", *FLAGS)
