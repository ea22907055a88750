"""`outdraft generate`: prompts from a file, answers to a file, no server."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import engine
from engine.config import acceptance_text
from engine.config_files import load_config
from engine.config_flags import add_config_flags, config_from_args
from engine.outputs import CompletionOutput, RequestOutput
from engine.prompts import read_prompt_lines
from engine.sampling_params import SamplingParams
from server.cli.sampling_flags import add_sampling_flags, given_sampling, sampling_params
from server.json_line import as_line

if TYPE_CHECKING:
    from engine.llm import RunStats


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add what the command does, and its flags."""
    parser.description = (
        "Read prompts, one JSON object a line ({'prompt': text}, "
        "{'prompt_token_ids': [...]} or {'messages': [...]}), and write one answer a line."
    )
    parser.add_argument("--input", required=True, type=Path, help="prompts, JSON lines")
    parser.add_argument("--output", required=True, type=Path, help="answers, JSON lines")
    parser.add_argument("--stats", type=Path, help="write counts and timings here, JSON")
    parser.add_argument("--config", help="name in model_configs/ or a YAML file")
    add_sampling_flags(parser.add_argument_group("sampling"), SamplingParams())
    add_config_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Generate, and write answers and counts.

    Raises:
        InvalidRequestError: a line of the input cannot be read or served.
        ConfigError: a setting cannot be honoured.
        ModelLoadError: a model cannot be loaded.
    """
    params = sampling_params(given_sampling(args))
    lines = read_prompt_lines(args.input, "input")
    console = Console(stderr=True)
    base = load_config(args.config) if args.config else None
    with console.status("loading the models"):
        llm = engine.LLM(config=config_from_args(args, base))
    prompts = [line.token_ids(llm.prompt_tokenizer) for line in lines]
    with _progress(console) as on_progress:
        outputs = llm.generate(prompts, params, on_progress=on_progress)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("w", encoding="utf-8") as file:
        file.writelines(
            as_line(json.dumps(_line(o), ensure_ascii=False).encode()).decode() for o in outputs
        )
    if args.stats is not None:
        args.stats.write_text(json.dumps(_stats(llm.last_run), indent=2) + "\n", encoding="utf-8")
    _summarise(console, llm.last_run, args.output)
    return 0


@contextmanager
def _progress(console: Console) -> Iterator[Any]:
    columns = (
        TextColumn("generating"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} tokens/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("generating", total=None, rate=0.0)

        def on_progress(run: RunStats) -> None:
            bar.update(
                task,
                total=run.num_requests,
                completed=run.num_finished,
                rate=run.tokens_per_second,
            )

        yield on_progress


def _line(output: RequestOutput) -> dict[str, Any]:
    return {
        "index": output.index,
        "outputs": [_answer(answer) for answer in output.outputs],
        "usage": {
            "prompt_tokens": len(output.prompt_token_ids),
            "completion_tokens": output.num_output_tokens,
            "total_tokens": len(output.prompt_token_ids) + output.num_output_tokens,
            "prompt_tokens_details": {"cached_tokens": output.num_cached_tokens},
        },
        "seed": output.seed,
        "metrics": output.metrics,
    }


def _answer(answer: CompletionOutput) -> dict[str, Any]:
    line: dict[str, Any] = {
        "token_ids": answer.token_ids,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
    }
    if answer.stop_reason is not None:
        line["stop_reason"] = answer.stop_reason
    if answer.logprobs is not None:
        line["logprobs"] = [asdict(logprob) for logprob in answer.logprobs]
    if answer.error is not None:
        line["error"] = answer.error
    return line


def _stats(run: RunStats) -> dict[str, Any]:
    speculation, rates = run.speculation, run.synthetic_acceptance
    return {
        **({"synthetic_acceptance": list(rates)} if rates else {}),
        "generation_seconds": run.generation_seconds,
        "requests": run.num_requests,
        "output_tokens": run.num_output_tokens,
        "tokens_per_second": run.tokens_per_second,
        "steps": run.num_steps,
        "target_passes": speculation.num_target_passes,
        "tokens_per_target_pass": speculation.tokens_per_target_pass,
        "num_drafts": speculation.num_drafts,
        "num_draft_tokens": speculation.num_draft_tokens,
        "num_accepted_tokens": speculation.num_accepted_tokens,
        "num_draft_tokens_per_pos": speculation.num_draft_tokens_per_pos,
        "num_accepted_tokens_per_pos": speculation.num_accepted_tokens_per_pos,
        "draft_seconds": run.draft_seconds,
        "target_seconds": run.target_seconds,
        "overhead_seconds": run.overhead_seconds,
        "controller_seconds": run.controller_seconds,
    }


def _summarise(console: Console, run: RunStats, path: Path) -> None:
    console.print(
        f"{run.num_requests} answers, {run.num_output_tokens} tokens in "
        f"{run.generation_seconds:.1f} s ({run.tokens_per_second:.1f} tokens/s, "
        f"{run.speculation.tokens_per_target_pass:.2f} tokens per target pass) -> {path}"
    )
    if run.synthetic_acceptance:
        rates = acceptance_text(run.synthetic_acceptance)
        console.print(f"synthetic acceptance {rates}: the answers are not the model's")
