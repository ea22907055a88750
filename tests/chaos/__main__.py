"""Chaos: everything that may go wrong around a server, on purpose, by a seed; `make chaos`."""

from __future__ import annotations

import argparse
import random
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace

from rich.console import Console
from rich.table import Table

from benchmarks.program import add_output_flags, run_program, write_output
from tests.chaos import (
    batches,
    crashes,
    drain,
    hostile,
    record_stream,
    rude_clients,
    soak,
    step_faults,
    storm,
)
from tests.chaos.findings import Finding
from tests.chaos.sizes import FULL, SHORT, Sizes

Phase = Callable[[Finding, Sizes, random.Random], None]
PHASES: dict[str, Phase] = {
    "storm": storm.run,
    "rude clients": rude_clients.run,
    "crashes": crashes.run,
    "drain": drain.run,
    "step faults": step_faults.run,
    "hostile": hostile.run,
    "batches": batches.run,
    "record stream": record_stream.run,
    "soak": soak.run,
}


def run_phase(name: str, sizes: Sizes, seed: int) -> Finding:
    """Run one phase; one that fails itself has proven nothing."""
    finding = Finding(name)
    began = time.monotonic()
    try:
        PHASES[name](finding, sizes, random.Random(f"{seed} {name}"))
    except Exception as error:
        traceback.print_exc()
        finding.violations[f"the phase failed: {type(error).__name__}: {error}"[:2000]] += 1
    finding.seconds = time.monotonic() - began
    return finding


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add what is run, how much of it, and where it is written."""
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    parser.add_argument("--only", nargs="+", choices=PHASES, default=list(PHASES), metavar="PHASE")
    parser.add_argument("--short", action="store_true", help="a little of everything")
    parser.add_argument("--soak-s", type=float, help="seconds of mixed traffic (default: 120)")
    parser.add_argument("--faults", type=int, help="faults between the engine's parts")
    parser.add_argument("--hostile", type=int, help="hostile requests (default: 20000)")
    add_output_flags(parser, "chaos")


def run(args: argparse.Namespace) -> int:
    """Run the phases, tell, and write down what was found."""
    console = Console()
    given = {name: getattr(args, name) for name in ("soak_s", "faults", "hostile")}
    sizes = replace(
        SHORT if args.short else FULL,
        **{name: value for name, value in given.items() if value is not None},
    )
    findings = []
    for name in args.only:
        findings.append(run_phase(name, sizes, args.seed))
        _tell(console, findings[-1])
    console.print(_summary(findings))
    write_output(
        args,
        console,
        {
            "seed": args.seed,
            "sizes": asdict(sizes),
            "phases": [finding.as_object() for finding in findings],
        },
    )
    return int(any(finding.violations or finding.missed for finding in findings))


def _tell(console: Console, finding: Finding) -> None:
    console.rule(f"{finding.phase}, {finding.seconds:.0f} s")
    for name, value in finding.numbers.items():
        console.print(f"{name}: {value}", highlight=False, markup=False)
    for line in [*finding.told, *finding.missed]:
        console.print(f"BROKEN {line}", highlight=False, markup=False)


def _summary(findings: list[Finding]) -> Table:
    table = Table(title="chaos", title_justify="left")
    for column in ("phase", "seconds", "laws broken", "bars missed", "verdict"):
        table.add_column(column, justify="left" if column in ("phase", "verdict") else "right")
    for finding in findings:
        is_well = not finding.violations and not finding.missed
        table.add_row(
            finding.phase,
            f"{finding.seconds:.0f}",
            str(finding.violations.total()),
            str(len(finding.missed)),
            "holds" if is_well else "BROKEN",
        )
    return table


if __name__ == "__main__":
    raise SystemExit(run_program(__doc__, add_flags, run))
