"""Records of any fields: a template makes a prompt of them, and the answer joins them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.batches.lines import CHATS_URL, COMPLETIONS_URL, BatchLine, BatchLineError
from server.batches.output import LineAnswer, line_error
from server.json_line import as_line
from server.offline.openai_recipe import broken
from server.offline.outcome import (
    Job,
    Outcome,
    PastRow,
    TableShape,
    body_of,
    is_passing,
    past_row,
    usage_of,
)
from server.offline.prompt_template import PromptTemplate, TemplateFailedError
from server.offline.records import BrokenRecordError, Record
from server.offline.values import json_value

INCOMPLETE = "incomplete_output"


@dataclass(frozen=True, slots=True)
class TemplateRecipe:
    """Asks what a template makes of a record; rows are the records with what was answered.

    Attributes:
        model: to ask for.
        prompt: writes the user's message, or the text to complete.
        system: writes the system's message; None = there is none.
        is_completion: whether texts are completed, instead of messages answered.
        options: further fields of every body.
        is_json: whether answers are JSON, and go into rows as such.
        id_field: names the record; None = `id` if it has one, and else its number.
        output_field: what the answer is called in rows; `_info` and `_error` behind it are taken.
    """

    model: str
    prompt: PromptTemplate
    system: PromptTemplate | None = None
    is_completion: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    is_json: bool = False
    id_field: str | None = None
    output_field: str = "output"

    @property
    def info_field(self) -> str:
        """What is told of an answer: why it ended, and its tokens."""
        return f"{self.output_field}_info"

    @property
    def error_field(self) -> str:
        """Why there is no answer."""
        return f"{self.output_field}_error"

    @property
    def own_fields(self) -> tuple[str, str, str]:
        """The fields that rows have beside the record's."""
        return self.output_field, self.info_field, self.error_field

    @property
    def table_shape(self) -> TableShape:
        """See `Recipe`."""
        return TableShape(self.own_fields, (self.info_field, self.error_field))

    def line(self, record: Record) -> BatchLine:
        """See `Recipe`."""
        fields = self._fields(record)
        custom_id = self._custom_id(record.number, fields)
        for name in self.own_fields:
            if name in fields:
                raise _refused(
                    record.number,
                    f"{name}: the record has this field already; choose another --output-field.",
                    name,
                    "invalid_record",
                    custom_id,
                )
        try:
            body = self._body(fields)
        except TemplateFailedError as error:
            raise _refused(record.number, str(error), None, "template_error", custom_id) from error
        url = COMPLETIONS_URL if self.is_completion else CHATS_URL
        return BatchLine(record.number, custom_id, "POST", url, body)

    def answered(self, job: Job, answer: LineAnswer) -> Outcome:
        """See `Recipe`."""
        body = body_of(answer)
        number = job.record.number
        if not answer.is_success:
            told = body["error"]
            code = told["code"] or told["type"]
            error = {"code": code, "message": told["message"], "status": answer.status_code}
            row = self._row(job, None, None, error | {"line": number})
            return Outcome(row, code, is_passing(answer.status_code))
        info = {"finish_reason": _reason(body), "usage": _usage(body)}
        try:
            output = self._output(body)
        except ValueError as error:
            message = f"The answer is no whole JSON ({error}); raise --max-tokens."
            told = {"code": INCOMPLETE, "message": message, "line": number}
            return Outcome(self._row(job, None, info, told), INCOMPLETE, False, *usage_of(body))
        return Outcome(self._row(job, output, info, None), None, False, *usage_of(body))

    def failed(self, job: Job, error: BatchLineError) -> Outcome:
        """See `Recipe`."""
        return Outcome(self._row(job, None, None, dict(line_error(error))), error.code)

    def past(self, row: dict[str, Any]) -> PastRow | None:
        """See `Recipe`."""
        if self.output_field not in row:
            return None
        custom_id, error = row.get(self.id_field or "id"), row.get(self.error_field)
        status = error.get("status") if isinstance(error, dict) else None
        is_name = custom_id is not None and not isinstance(custom_id, dict | list)
        return past_row(_id_text(custom_id) if is_name else None, error, status)

    def _fields(self, record: Record) -> dict[str, Any]:
        try:
            return record.fields
        except BrokenRecordError as error:
            raise broken(record.number, error) from error

    def _custom_id(self, number: int, fields: dict[str, Any]) -> str:
        name = self.id_field or "id"
        value = fields.get(name)
        if value is not None and not isinstance(value, dict | list):
            return _id_text(json_value(value))
        if self.id_field is None and name not in fields:
            return str(number)
        raise _refused(
            number, f"{name}: an id is a text or a number.", name, "invalid_record", None
        )

    def _body(self, fields: dict[str, Any]) -> dict[str, Any]:
        text = self.prompt.render(fields)
        if self.is_completion:
            return {"model": self.model, "prompt": text, **self.options}
        messages = [{"role": "user", "content": text}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system.render(fields)})
        return {"model": self.model, "messages": messages, **self.options}

    def _output(self, body: dict[str, Any]) -> Any:
        texts = [_text(choice) for choice in body["choices"]]
        outputs = [json.loads(text) for text in texts] if self.is_json else texts
        return outputs[0] if self.options.get("n", 1) == 1 else outputs

    def _row(self, job: Job, output: Any, info: Any, error: dict[str, Any] | None) -> bytes:
        """Write a row: the record under its id, and what became of it."""
        try:
            fields = job.record.fields
        except BrokenRecordError:
            fields = {}
        row = {} if job.asked.custom_id is None else self._named(job, fields)
        row |= {name: value for name, value in fields.items() if name not in self.own_fields}
        row |= {self.output_field: output, self.info_field: info}
        if error is not None:
            row[self.error_field] = error
        return as_line(_json(row))

    def _named(self, job: Job, fields: dict[str, Any]) -> dict[str, Any]:
        name = self.id_field or "id"
        return {name: fields.get(name, job.record.number)}


def _json(row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, default=json_value).encode()
    except UnicodeEncodeError:
        # Half a character can be written as JSON's escape alone.
        return json.dumps(row, default=json_value).encode()


def _text(choice: dict[str, Any]) -> str:
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    return text or ""


def _reason(body: dict[str, Any]) -> Any:
    reasons = [choice["finish_reason"] for choice in body["choices"]]
    return reasons[0] if len(reasons) == 1 else reasons


def _usage(body: dict[str, Any]) -> dict[str, int]:
    """Give the counts without what they are made up of."""
    return {name: count for name, count in body["usage"].items() if isinstance(count, int)}


def _id_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _refused(
    number: int, message: str, param: str | None, code: str, custom_id: str | None
) -> BatchLineError:
    return BatchLineError(message, number=number, param=param, code=code, custom_id=custom_id)
