"""How often draft and target agree, by the noise they draft with, against what is possible.

On texts that the target itself wrote at temperature T, both models are run over the same prefixes
and, per position, with p the target's and q the draft's distribution:

- optimum: sum(min(p, q)) = 1 - TV, what rejection sampling accepts (Leviathan et al. 2211.17192);
- coupled: both take argmax(log + g) with the same Gumbel noise g (Daliri et al. 2408.07978), which
  is how the engine drafts; the noise is averaged over many draws per position;
- greedy: the draft takes argmax q, accepted with p of it;
- independent: both sample on their own, sum(p * q).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForCausalLM

from benchmarks.report import settings_of, write_results
from benchmarks.workloads import SHARED, chat_prompts, held_out_dialogues
from engine import LLM, SamplingParams
from engine.config_files import demo_config
from engine.sampling.noise import gumbel_noise


def main() -> None:
    """Run the benchmark, print a table and write `acceptance.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    demo = demo_config()
    parser.add_argument("--model", default=demo.model.model)
    parser.add_argument("--draft", default=demo.speculation.draft)
    parser.add_argument("--data-dir", default=str(SHARED / "data"))
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--draws", type=int, default=4, help="noise draws per position")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.7, 1.0])
    args = parser.parse_args()
    rows = [_measure(args, temperature) for temperature in args.temperatures]
    _show(rows)
    write_results("acceptance", {"settings": settings_of(args), "rows": rows})


def _measure(args: argparse.Namespace, temperature: float) -> dict[str, Any]:
    llm = LLM(args.model, args.draft, speculation=0)
    dialogues = held_out_dialogues(Path(args.data_dir), args.prompts)
    prompts = chat_prompts(llm.tokenizer, dialogues)
    params = SamplingParams(
        temperature=temperature, seed=7, max_tokens=args.max_tokens, ignore_eos=True
    )
    target, draft = (
        AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        for name in (args.model, args.draft)
    )
    totals = torch.zeros(4, dtype=torch.float64)
    count = 0
    for output in track(llm.generate(prompts, params), f"T={temperature:g}"):
        text = output.prompt_token_ids + output.outputs[0].token_ids
        p, q = (_log_probs(m, text, output, temperature) for m in (target, draft))
        totals += _agreement(p, q, len(output.prompt_token_ids), args.draws)
        count += len(p)
    optimum, coupled, greedy, independent = (totals / count).tolist()
    return {
        "temperature": temperature,
        "positions": count,
        "optimum": round(optimum, 4),
        "coupled": round(coupled, 4),
        "greedy": round(greedy, 4),
        "independent": round(independent, 4),
        "coupled_over_optimum": round(coupled / optimum, 4),
    }


@torch.inference_mode()
def _log_probs(model: Any, text: list[int], output: Any, temperature: float) -> torch.Tensor:
    """Give log probabilities [num_answer_tokens, vocab] of the answer's positions."""
    logits = model(torch.tensor([text])).logits[0, len(output.prompt_token_ids) - 1 : -1]
    return torch.log_softmax(logits.double() / temperature, -1)


def _agreement(p: torch.Tensor, q: torch.Tensor, start: int, draws: int) -> torch.Tensor:
    optimum = torch.minimum(p.exp(), q.exp()).sum()
    greedy = p.exp().gather(1, q.argmax(-1, keepdim=True)).sum()
    independent = (p + q).exp().sum()
    coupled = torch.zeros((), dtype=torch.float64)
    positions = [start + i for i in range(len(p))]
    for draw in range(draws):
        seeds = [1000 + draw] * len(p)
        noise = gumbel_noise(seeds, [0] * len(p), positions, p.shape[1], p.device)
        coupled += ((p + noise).argmax(-1) == (q + noise).argmax(-1)).double().sum() / draws
    return torch.stack([optimum, coupled, greedy, independent])


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="acceptance per draft position, on the target's own texts")
    for column in ("T", "positions", "optimum", "coupled", "greedy", "independent", "c/o"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{value:g}" for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
