"""The results file of a run: written after every part, so that a run that is killed leaves it.

It knows how outcomes lie in JSON, and gives back those of an earlier file, to go on from there.
"""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.part import Notes, Outcome, Quantity
from benchmarks.report import rounded, write_results


@dataclass(slots=True)
class RunFile:
    """What a run found so far.

    Attributes:
        name: of the file.
        folder: where it lies.
        settings: of the run.
        outcomes: of its parts, in order.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / f"{self.name}.json"

    def write(self) -> None:
        """Write everything, provenance first."""
        content = {
            "settings": self.settings,
            "device": device_facts(),
            "parts": [_to_json(outcome) for outcome in self.outcomes],
        }
        write_results(self.name, content, self.folder)

    def load(self) -> None:
        """Take over the outcomes that the file has."""
        content = json.loads(self.path.read_text(encoding="utf-8"))
        self.outcomes = [_from_json(part) for part in content["parts"]]


def device_facts() -> dict[str, Any]:
    """Say what the device is, as torch sees it."""
    facts: dict[str, Any] = {"cuda": torch.version.cuda, "triton": _version("triton")}
    facts["system"] = platform.platform()
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        facts |= {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "multiprocessors": properties.multi_processor_count,
        }
    return facts


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _to_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.name,
        "status": outcome.status,
        "seconds": round(outcome.seconds, 2),
        "quantities": [_quantity(quantity) for quantity in outcome.notes.quantities],
        "details": rounded(outcome.notes.details),
        "error": outcome.error,
    }


def _quantity(quantity: Quantity) -> dict[str, Any]:
    return {
        "name": quantity.name,
        "value": quantity.value,
        "unit": quantity.unit,
        "bar": quantity.bar,
        "is_met": quantity.is_met,
        "spread": quantity.spread,
    }


def _from_json(part: dict[str, Any]) -> Outcome:
    quantities = [
        Quantity(
            name=q["name"],
            value=q["value"],
            unit=q["unit"],
            bar=q["bar"],
            spread=None if q["spread"] is None else tuple(q["spread"]),
        )
        for q in part["quantities"]
    ]
    notes = Notes(quantities, part["details"])
    return Outcome(part["name"], part["status"], part["seconds"], notes, part["error"])
