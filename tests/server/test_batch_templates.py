"""`outdraft batch --template`: prompts made of records, and records joined by their answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ConfigError
from server.batches.lines import BatchLine
from server.batches.output import LineAnswer
from server.offline.prompt_template import PromptTemplate, TemplateFailedError
from server.offline.run import Ask
from tests.server.batch_command import batch, read_lines, write_lines
from tests.server.harness import saying

BACKWARDS = ("--template", "{{ text }}", "--max-tokens", "4")


def hearing(bodies: list[BatchLine]) -> Ask:
    """Note lines, and answer all the same."""

    async def ask(line: BatchLine) -> LineAnswer:
        bodies.append(line)
        choice = {"message": {"content": "yes"}, "finish_reason": "stop"}
        if "prompt" in line.body:
            choice = {"text": "yes", "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
        return LineAnswer(200, "r", json.dumps({"choices": [choice], "usage": usage}).encode())

    return ask


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def source(tmp_path: Path, *records: Any) -> Path:
    return write_lines(tmp_path / "in.jsonl", records)


def test_a_record_is_joined_by_its_answer(tmp_path: Path, output: Path) -> None:
    record = {"text": "hällo", "tags": ["a", None], "id": "first"}
    assert batch(source(tmp_path, record), output, *BACKWARDS).status == 0
    (row,) = read_lines(output)
    assert list(row) == ["id", "text", "tags", "output", "output_info"]
    assert row | record == row
    assert row["output"] == ">tna", "the made-up engine says the prompt from its end"
    assert row["output_info"]["finish_reason"] == "length"
    assert row["output_info"]["usage"]["completion_tokens"] == 4


def test_prompt_system_and_sampling_become_the_body(tmp_path: Path, output: Path) -> None:
    heard: list[BatchLine] = []
    flags = ("--template", "Say {{ a.b }}", "--system", "Be {{ record.id }}", "--top-p", "0.5")
    flags += ("--seed", "3", "--stop", "x", "--stop", "y", "--ignore-eos")
    records = source(tmp_path, {"id": 7, "a": {"b": [1]}})
    batch(records, output, *flags, "--served-model-name", "mine", ask=hearing(heard))
    (line,) = heard
    assert (line.custom_id, line.url) == ("7", "/v1/chat/completions")
    messages = [{"role": "system", "content": "Be 7"}, {"role": "user", "content": "Say [1]"}]
    sampling = {"top_p": 0.5, "seed": 3, "stop": ["x", "y"], "ignore_eos": True}
    assert line.body == {"model": "tiny", "messages": messages, **sampling}


def test_a_completion_is_a_prompt_without_a_chat(tmp_path: Path, output: Path) -> None:
    heard: list[BatchLine] = []
    records = source(tmp_path, {"text": "abc"})
    batch(records, output, "--template", "{{ text }}", "--completion", ask=hearing(heard))
    assert heard[0].url == "/v1/completions"
    assert heard[0].body == {"model": "tiny", "prompt": "abc"}
    assert read_lines(output)[0]["output"] == "yes"


def test_several_answers_are_a_list(tmp_path: Path, output: Path) -> None:
    batch(source(tmp_path, {"text": "abc"}), output, *BACKWARDS, "--n", "2")
    (row,) = read_lines(output)
    assert row["output"] == [">tna", ">tna"]
    assert row["output_info"]["finish_reason"] == ["length", "length"]


def test_a_template_in_a_file_names_its_own_line(tmp_path: Path, output: Path) -> None:
    template = tmp_path / "prompt.txt"
    template.write_text("One line\nand {{ missing.deeper }}\n")
    ended = batch(source(tmp_path, {"id": 1, "a": 2}), output, "--template", f"@{template}")
    assert ended.status == 1
    error = read_lines(output)[0]["output_error"]
    assert error["code"] == "template_error"
    assert error["line"] == 1
    assert error["message"] == "Line 1: template, line 2: 'missing' is undefined"


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ record.update(a=1) }}",
        "{{ 1 / 0 }}",
        "{{ text.nothing }}",
        "{% include 'other' %}",
    ],
)
def test_a_template_can_do_nothing_but_write(text: str) -> None:
    with pytest.raises(TemplateFailedError, match="^template, line 1: "):
        PromptTemplate("template", text).render({"text": "x"})


def test_a_template_that_is_none_is_refused_with_its_line() -> None:
    with pytest.raises(ConfigError, match="template: line 2: "):
        PromptTemplate("template", "fine\n{% if %}")


def test_ids_come_from_their_field_or_the_number(tmp_path: Path, output: Path) -> None:
    records = [{"text": "a"}, {"text": "b", "id": "x"}, {"text": "c", "key": 5}]
    ended = batch(source(tmp_path, *records), output, *BACKWARDS)
    assert sorted(ended.asked) == ["1", "3", "x"]
    assert {row["text"]: row["id"] for row in read_lines(output)} == {"a": 1, "b": "x", "c": 3}
    ended = batch(tmp_path / "in.jsonl", output, *BACKWARDS, "--id-field", "key", "--overwrite")
    assert ended.asked == ("5",)
    errors = [row["output_error"] for row in read_lines(output) if "output_error" in row]
    assert {(error["line"], error["param"]) for error in errors} == {(1, "key"), (2, "key")}


def test_records_that_are_none_are_told_and_kept(tmp_path: Path, output: Path) -> None:
    records = [{"text": "a"}, "{", [1], {"text": "b", "output": 1}, {"id": [1], "text": "c"}]
    assert batch(source(tmp_path, *records), output, *BACKWARDS).status == 1
    errors = [row["output_error"] for row in read_lines(output) if "output_error" in row]
    assert sorted((error["line"], error["code"]) for error in errors) == [
        (2, "invalid_json"),
        (3, "invalid_record"),
        (4, "invalid_record"),
        (5, "invalid_record"),
    ]
    before = output.read_bytes()
    ended = batch(tmp_path / "in.jsonl", output, *BACKWARDS)
    assert (ended.asked, output.read_bytes()) == ((), before)


def test_answers_of_one_run_can_be_records_of_the_next(tmp_path: Path, output: Path) -> None:
    batch(source(tmp_path, {"text": "a"}), output, *BACKWARDS)
    second = tmp_path / "second.jsonl"
    flags = ("--template", "{{ output }}", "--max-tokens", "2", "--output-field", "again")
    assert batch(output, second, *flags).status == 0
    (row,) = read_lines(second)
    assert list(row) == ["id", "text", "output", "output_info", "again", "again_info"]


def test_a_schema_makes_answers_parsed_records(tmp_path: Path, output: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"a": {"type": "integer"}}}')
    flags = ("--template", "{{ text }}", "--json-schema", str(schema))
    records = source(tmp_path, {"text": "x"})
    ended = batch(records, output, *flags, "--max-tokens", "20", answer=saying('{"a": 5}'))
    assert ended.status == 0
    assert read_lines(output)[0]["output"] == {"a": 5}


def test_an_answer_that_is_no_whole_json_has_failed(tmp_path: Path, output: Path) -> None:
    flags = ("--template", "{{ text }}", "--json-schema", '{"type": "object"}')
    records = source(tmp_path, {"text": "x"})
    ended = batch(records, output, *flags, "--max-tokens", "4", answer=saying('{"a": 5}'))
    assert ended.status == 1
    (row,) = read_lines(output)
    assert row["output"] is None
    assert row["output_info"]["finish_reason"] == "length"
    assert row["output_error"]["code"] == "incomplete_output"
    assert "--max-tokens" in row["output_error"]["message"]


def test_half_a_character_is_written_as_json_can(tmp_path: Path, output: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a", "odd": "\\ud800"}\n')
    assert batch(tmp_path / "in.jsonl", output, *BACKWARDS).status == 0
    assert read_lines(output)[0]["odd"] == "\ud800"


def test_goes_on_by_the_ids_of_records(tmp_path: Path, output: Path) -> None:
    records = [{"id": name, "text": "a"} for name in ("x", 2, "3", 4.5)]
    batch(source(tmp_path, *records), output, *BACKWARDS, "--ordered")
    lines = output.read_text().splitlines(keepends=True)
    output.write_text("".join(lines[:2]) + lines[2][:20])
    ended = batch(tmp_path / "in.jsonl", output, *BACKWARDS)
    assert sorted(ended.asked) == ["3", "4.5"]
    assert [row["id"] for row in read_lines(output)][:2] == ["x", 2]


def test_rows_without_a_template_are_not_gone_on_with(tmp_path: Path, output: Path) -> None:
    write_lines(output, [{"custom_id": "a", "response": None, "error": {"line": 1}, "id": "x"}])
    with pytest.raises(ConfigError, match="was not written by this command with these flags"):
        batch(source(tmp_path, {"text": "a"}), output, *BACKWARDS)
