"""Constrained answers: are they valid, are they the same under speculation, and what do they cost?

Runs real JSON schemas and JSON-mode questions, a batch at a time in turn, with speculation off,
with the tokens that the grammar forces as the only drafts, with a draft model, and with both.
Finished answers are checked with `jsonschema`; an answer that `max_tokens` cuts is not finished.
`python -m benchmarks.structured_output --help` tells the options.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import lzma
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock

import jsonschema
from rich.console import Console
from rich.table import Table

from benchmarks.report import settings_of, write_results
from benchmarks.workloads import SHARED, chat_prompts
from engine import LLM, SamplingParams
from engine.errors import InvalidRequestError
from engine.llm import RunStats
from engine.outputs import CompletionOutput
from engine.request import GRAMMAR, FinishReason
from engine.sampling.grammar_masks import GrammarMasks
from engine.structured_output import StructuredOutput
from server.structured_outputs import json_schema_output

_SCHEMAS = Path("jsonschemabench/maskbench_sample.jsonl.xz")
_QUESTIONS = Path("json_mode_wiki/WikiQuestions.json")
_MAX_PROMPT_CHARS = 600
_MODES = ("off", "forced tokens", "draft", "draft and forced tokens")
_ANSWER_SCHEMA = {
    "type": "object",
    "properties": {
        "answerable": {"type": "boolean"},
        "answer": {"type": "string", "maxLength": 80},
        "source_title": {"type": "string", "maxLength": 40},
    },
    "required": ["answerable", "answer", "source_title"],
    "additionalProperties": False,
}


@dataclass(slots=True)
class Case:
    """One schema and a prompt that asks for an instance of it."""

    name: str
    schema: dict[str, Any]
    prompt: str


@dataclass(slots=True)
class Engine:
    """One mode's engine and what its runs gave.

    Attributes:
        answers: by case, in order.
        runs: one per batch.
        forced: forced tokens that were drafted, and those that were accepted.
    """

    llm: LLM
    knows_forced_tokens: bool = True
    answers: list[CompletionOutput] = field(default_factory=list)
    runs: list[RunStats] = field(default_factory=list)
    mask_seconds: float = 0.0
    wait_seconds: float = 0.0
    compile_seconds: float = 0.0
    forced: tuple[int, int] = (0, 0)

    def run(self, prompts: list[list[int]], params: list[SamplingParams]) -> None:
        """Generate one batch and add to the counts."""
        before = self.llm.core.stats()
        marks = _grammar_counts(before)
        with _telling_forced_tokens(self.knows_forced_tokens):
            outputs = self.llm.generate(prompts, params)
        after = _grammar_counts(self.llm.core.stats())
        added = [new - old for new, old in zip(after, marks, strict=True)]
        self.mask_seconds += added[0]
        self.wait_seconds += added[1]
        self.compile_seconds += added[2]
        self.forced = (self.forced[0] + int(added[3]), self.forced[1] + int(added[4]))
        self.answers += [output.outputs[0] for output in outputs]
        self.runs.append(self.llm.last_run)


def main() -> None:
    """Run the benchmark, print a table and write `structured_output.json`."""
    args = _parse()
    console = Console()
    data_dir = Path(args.data_dir)
    refused: Counter[str] = Counter()
    sources = {
        "jsonschemabench": list(_schemas(data_dir, args.schemas, args.seed)),
        "json_mode_wiki": list(_questions(data_dir, args.questions)),
    }
    rows = []
    for source, cases in sources.items():
        for is_compact in (False, True):
            shaped = list(_shaped(cases, is_compact, None if is_compact else refused))
            for temperature in args.temperatures if shaped else ():
                console.print(f"{source}, compact={is_compact}, T={temperature}")
                found = _compare(args, shaped, temperature)
                rows += [{"source": source, "compact": is_compact, **row} for row in found]
    _show(console, rows)
    results = {"settings": settings_of(args), "refused": dict(refused.most_common()), "rows": rows}
    console.print(f"written: {write_results(args.name, results)}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="target (default: the demo pair)")
    parser.add_argument("--draft", help="draft (default: the demo pair's)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data-dir", default=str(SHARED / "data"))
    parser.add_argument("--schemas", type=int, default=100)
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0, help="rotates which schemas are taken")
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--draft-tokens", type=int, default=4)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--name", default="structured_output", help="name of the results file")
    return parser.parse_args()


def _schemas(data_dir: Path, count: int, seed: int) -> Iterator[Case]:
    """Take schemas evenly from all groups of the sample."""
    with lzma.open(data_dir / _SCHEMAS, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    rows = [row for row in rows if isinstance(row["schema"], dict)]
    stride = max(1, len(rows) // max(1, count))
    for row in rows[seed % stride :: stride][:count]:
        text = json.dumps(row["schema"])[:_MAX_PROMPT_CHARS]
        yield Case(row["id"], row["schema"], f"Write JSON for this schema: {text}")


def _questions(data_dir: Path, count: int) -> Iterator[Case]:
    rows = json.loads((data_dir / _QUESTIONS).read_text(encoding="utf-8"))
    for index, row in enumerate(rows[:count]):
        context = row["context"][:_MAX_PROMPT_CHARS]
        yield Case(f"wiki-{index}", _ANSWER_SCHEMA, f"{context}\n{row['question']} Answer as JSON.")


def _shaped(
    cases: list[Case], is_compact: bool, refused: Counter[str] | None
) -> Iterator[tuple[Case, StructuredOutput]]:
    """Leave the cases that can be held, and count why the others cannot."""
    for case in cases:
        try:
            yield case, json_schema_output(case.schema, param="schema", compact=is_compact)
        except InvalidRequestError as error:
            if refused is not None:
                refused[str(error)[:120]] += 1


def _engines(args: argparse.Namespace) -> dict[str, Engine]:
    """One engine per mode; `draft` is not told what grammars force."""
    engines = {}
    for mode in _MODES:
        speculation = {"off": "off", "forced tokens": "auto"}.get(mode, args.draft_tokens)
        options = {
            "speculation": speculation,
            "device": args.device,
            "threads": args.threads,
            "max_num_seqs": args.concurrency,
            "prefix_caching": False,
        }
        draft = "none" if mode == "forced tokens" else args.draft
        with _telling_forced_tokens(mode != "draft"):
            llm = LLM(args.model, draft, **options)
        engines[mode] = Engine(llm, knows_forced_tokens=mode != "draft")
    return engines


def _telling_forced_tokens(is_telling: bool) -> contextlib.AbstractContextManager[object]:
    """Let grammars say what they force, or nothing: at loading and at every step."""
    if is_telling:
        return contextlib.nullcontext()
    return mock.patch.object(GrammarMasks, "forced_tokens", return_value=[])


def _compare(
    args: argparse.Namespace, shaped: list[tuple[Case, StructuredOutput]], temperature: float
) -> list[dict[str, Any]]:
    engines = _engines(args)
    tokenizer = engines["off"].llm.tokenizer
    for begin in range(0, len(shaped), args.concurrency):
        batch = shaped[begin : begin + args.concurrency]
        dialogues = [[{"role": "user", "content": case.prompt}] for case, _ in batch]
        params = [
            SamplingParams(
                temperature=temperature,
                seed=1 + begin + index,
                max_tokens=args.max_tokens,
                structured_output=shape,
            )
            for index, (_, shape) in enumerate(batch)
        ]
        for engine in engines.values():
            engine.run(chat_prompts(tokenizer, dialogues), params)
    cases = [case for case, _ in shaped]
    plain = engines["off"]
    return [
        {"temperature": temperature, "speculation": mode, **_row(engine, plain, cases)}
        for mode, engine in engines.items()
    ]


def _row(engine: Engine, plain: Engine, cases: list[Case]) -> dict[str, Any]:
    total = RunStats()
    for run in engine.runs:
        total.add(run)
    finished = [
        (case, answer)
        for case, answer in zip(cases, engine.answers, strict=True)
        if answer.finish_reason is FinishReason.STOP
    ]
    faults = {case.name: fault for case, a in finished if (fault := _fault(case, a.text or ""))}
    pairs = list(zip(engine.answers, plain.answers, strict=True))
    ratios = [
        mine.tokens_per_second / other.tokens_per_second
        for mine, other in zip(engine.runs, plain.runs, strict=True)
    ]
    seconds = total.generation_seconds
    return {
        "answers": len(engine.answers),
        "errors": dict(Counter(a.error for a in engine.answers if a.error is not None)),
        "finished": len(finished),
        "valid": len(finished) - len(faults),
        "invalid": faults,
        "equal_to_off": sum(mine.token_ids == other.token_ids for mine, other in pairs),
        "different": [
            case.name
            for case, (mine, other) in zip(cases, pairs, strict=True)
            if mine.token_ids != other.token_ids
        ],
        "tokens": total.num_output_tokens,
        "tokens_per_second": round(total.tokens_per_second, 1),
        "speed_up_median_of_batches": round(statistics.median(ratios), 3),
        "tokens_per_target_pass": round(total.speculation.tokens_per_target_pass, 3),
        "acceptance_rate": round(total.speculation.acceptance_rate, 4),
        "forced_tokens_drafted": engine.forced[0],
        "forced_tokens_accepted": engine.forced[1],
        "mask_seconds_share": round(engine.mask_seconds / seconds, 4),
        "mask_wait_seconds_share": round(engine.wait_seconds / seconds, 4),
        "compile_seconds_per_answer": round(engine.compile_seconds / len(cases), 5),
    }


def _fault(case: Case, text: str) -> str | None:
    """Say why an answer is no instance of its schema; None if it is.

    Numbers are decimal on both sides: in binary, 1.4 is no multiple of 0.1.
    """
    try:
        instance = json.loads(text, parse_float=Decimal)
    except ValueError as error:
        return f"no JSON ({error}): {text[:200]}"
    schema = json.loads(json.dumps(case.schema), parse_float=Decimal)
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    fault = next(validator(schema).iter_errors(instance), None)
    return None if fault is None else f"{fault.validator}: {fault.message[:200]}"


def _grammar_counts(stats: Any) -> tuple[float, ...]:
    forced = stats.by_drafter.get(GRAMMAR)
    return (
        stats.grammar_mask_seconds,
        stats.grammar_mask_wait_seconds,
        stats.grammar_compile_seconds,
        0 if forced is None else forced.num_draft_tokens,
        0 if forced is None else forced.num_accepted_tokens,
    )


def _show(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table(title="constrained answers")
    for column in (
        "source", "compact", "T", "speculation", "finished", "valid", "equal", "tokens/s",
        "speed-up", "tau", "masks", "waited",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["source"],
            str(row["compact"]),
            f"{row['temperature']:g}",
            row["speculation"],
            f"{row['finished']} of {row['answers']}",
            str(row["valid"]),
            str(row["equal_to_off"]),
            f"{row['tokens_per_second']:.1f}",
            f"{row['speed_up_median_of_batches']:.2f}x",
            f"{row['tokens_per_target_pass']:.2f}",
            f"{row['mask_seconds_share']:.1%}",
            f"{row['mask_wait_seconds_share']:.1%}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
