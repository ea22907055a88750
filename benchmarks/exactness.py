"""Counts the words that speculation changes: none but ties within float32 rounding may.

The same seeded prompts are generated plainly, one at a time; then with every draft length, a good
and a random draft, alone and sixteen at once. Where an answer differs, the two tokens' perturbed
logits at the first difference are computed in float64: a gap within rounding is a tie (a pass over
k+1 rows rounds differently from a pass over one), anything more is a bug.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table
from transformers import AutoModelForCausalLM

from benchmarks.random_draft import write_random_draft
from benchmarks.report import settings_of, write_results
from benchmarks.workloads import SHARED, chat_prompts, held_out_dialogues
from engine import LLM, SamplingParams
from engine.config_files import demo_config
from engine.door import make_requests
from engine.sampling.noise import gumbel_noise
from engine.sampling.sampler import Sampler
from engine.sampling.sampling_batch import Rows, SamplingBatch

# Gaps of perturbed logits above this are no rounding: float32 logits of size 30 round by 2e-6, and
# a few hundred operations lie before them.
TIE = 1e-3

SETTINGS = {
    "T=0.7 top_p=0.9 penalties": SamplingParams(
        temperature=0.7,
        top_p=0.9,
        presence_penalty=0.5,
        frequency_penalty=0.2,
        repetition_penalty=1.1,
        seed=17,
        ignore_eos=True,
    ),
    "T=1.0 min_p=0.02": SamplingParams(temperature=1.0, min_p=0.02, seed=17, ignore_eos=True),
}


def main() -> None:
    """Run every combination, print a table and write `exactness.json`."""
    args = _parse()
    console = Console()
    dialogues = held_out_dialogues(Path(args.data_dir), args.prompts)
    with tempfile.TemporaryDirectory() as folder, Progress(console=console) as progress:
        drafts = {"good": args.draft, "random": write_random_draft(args.draft, folder)}
        runs = list(_runs(args))
        task = progress.add_task("generating", total=len(runs) * len(SETTINGS))
        rows = _compare(args, drafts, runs, dialogues, progress, task)
    _show(console, rows)
    write_results("exactness", {"settings": settings_of(args), "tie": TIE, "rows": rows})


def _parse() -> argparse.Namespace:
    demo = demo_config()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=demo.model.model)
    parser.add_argument("--draft", default=demo.speculation.draft)
    parser.add_argument("--data-dir", default=str(SHARED / "data"))
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--draft-tokens", type=int, nargs="+", default=[1, 3, 5, 8])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _runs(args: argparse.Namespace) -> Iterator[tuple[str, int, int]]:
    """Give (draft, draft tokens, concurrency); the plain run of one at a time comes first."""
    for concurrency in args.concurrency:
        yield "none", 0, concurrency
        for draft in ("good", "random"):
            for k in args.draft_tokens:
                yield draft, k, concurrency


def _compare(
    args: argparse.Namespace,
    drafts: dict[str, str],
    runs: list[tuple[str, int, int]],
    dialogues: list[list[dict[str, str]]],
    progress: Progress,
    task: TaskID,
) -> list[dict[str, Any]]:
    plain: dict[str, list[list[int]]] = {}
    rows = []
    for draft, k, concurrency in runs:
        llm = LLM(
            args.model,
            drafts.get(draft),
            speculation=k,
            max_num_seqs=concurrency,
            threads=args.threads,
        )
        prompts = chat_prompts(llm.tokenizer, dialogues)
        for name, settings in SETTINGS.items():
            params = replace(settings, max_tokens=args.max_tokens)
            answers = [o.outputs[0].token_ids for o in llm.generate(prompts, params)]
            reference = plain.setdefault(name, answers)
            rows.append(
                {
                    "settings": name,
                    "draft": draft,
                    "draft_tokens": k,
                    "concurrency": concurrency,
                    "prompts": len(prompts),
                    "acceptance_rate": round(llm.last_run.speculation.acceptance_rate, 4),
                    "mismatches": _mismatches(llm, prompts, params, reference, answers),
                }
            )
            progress.advance(task)
    return rows


def _mismatches(
    llm: LLM,
    prompts: list[list[int]],
    params: SamplingParams,
    expected: list[list[int]],
    found: list[list[int]],
) -> list[dict[str, Any]]:
    differing = [i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b]
    return [
        _explain(llm, prompts[i], params, expected[i], found[i]) | {"prompt": i} for i in differing
    ]


def _explain(
    llm: LLM, prompt: list[int], params: SamplingParams, expected: list[int], found: list[int]
) -> dict[str, Any]:
    """Compute the gap between the two tokens at the first difference, in float64."""
    pairs = zip(expected, found, strict=True)
    place = next(i for i, (a, b) in enumerate(pairs) if a != b)
    request = make_requests(prompt, params, request_id="explain", info=llm.info)[0]
    request.token_ids += expected[:place]
    model = AutoModelForCausalLM.from_pretrained(str(llm.config.model.model), dtype=torch.float64)
    with torch.inference_mode():
        logits = model(torch.tensor([request.token_ids])).logits[:, -1].float()
    batch = SamplingBatch.build([request], 0, logits.shape[-1])
    sampler = Sampler(logits.shape[-1])
    perturbed = sampler.process(logits, batch, Rows.ragged([0]))[0]
    if not params.is_greedy:
        place_of = ([request.params.seed or 0], [request.choice_index], [request.num_tokens])
        perturbed += gumbel_noise(*place_of, logits.shape[-1])[0]
    gap = abs(float(perturbed[expected[place]] - perturbed[found[place]]))
    return {
        "position": place,
        "tokens": [expected[place], found[place]],
        "gap": gap,
        "is_tie": gap < TIE,
    }


def _show(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table(title="answers that differ from plain decoding, one at a time")
    for column in ("settings", "draft", "k", "at once", "accepted", "differ", "not a tie"):
        table.add_column(column, justify="right")
    for row in rows:
        wrong = sum(not mismatch["is_tie"] for mismatch in row["mismatches"])
        table.add_row(
            row["settings"],
            row["draft"],
            str(row["draft_tokens"]),
            str(row["concurrency"]),
            f"{row['acceptance_rate']:.3f}",
            f"{len(row['mismatches'])} of {row['prompts']}",
            str(wrong),
        )
    console.print(table)
    console.print(json.dumps([m for row in rows for m in row["mismatches"]], indent=None))


if __name__ == "__main__":
    main()
