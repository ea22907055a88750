"""How long a checkpoint takes to load, against reading its files and doing nothing with them.

A checkpoint of a shape is written with random weights. Every round reads its files in large pieces,
loads the model, and lets transformers load it, each from the disk (the files are first dropped from
the system's cache) and from the cache. A load counts until every weight is where it will be used:
on a CPU transformers maps files into memory, so there the weights are looked at once.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks.program import add_output_flags, run_program, write_output
from benchmarks.report import machine_in_words, rounded, settings_of
from benchmarks.workbench import check_at_least
from engine.config import DTYPES
from engine.errors import ConfigError
from engine.model.loader import load_model
from engine.model.shapes import load_shape
from engine.model_pair import resolve_device, set_threads

BAR = 1.2
_PIECE_BYTES = 16 * 2**20
_PAGE_BYTES = 4096
_SHARD = "5GB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """What was measured with the files on the disk, or in the system's cache.

    Attributes:
        source: `disk` or `cache`.
        read_s: reading all files, by round.
        load_s: loading the model, checks of its architecture included, by round.
        transformers_s: loading it with transformers alone, by round.
    """

    source: str
    read_s: list[float]
    load_s: list[float]
    transformers_s: list[float]

    @property
    def ratio(self) -> float:
        """Of medians: loading over reading."""
        return median(self.load_s) / median(self.read_s)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the program's flags."""
    parser.add_argument("--shape", default="llama-3.1-8b", help="default: llama-3.1-8b")
    parser.add_argument("--layers", type=int, help="instead of the shape's own")
    parser.add_argument("--dtype", choices=DTYPES[1:], default="bfloat16", help="default: bfloat16")
    parser.add_argument("--device", default="auto", help="default: cuda where there is one")
    parser.add_argument("--threads", type=int, help="CPU threads (default: one per core)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3, after one to warm up")
    parser.add_argument(
        "--folder", type=Path, help="where the checkpoint is written (default: a temporary one)"
    )
    add_output_flags(parser, "loading")


def run(args: argparse.Namespace) -> int:
    """Measure, and tell.

    Raises:
        ConfigError: a setting cannot be honoured.
        ModelLoadError: the model cannot be loaded.
    """
    check_at_least("rounds", args.rounds, 1)
    if not hasattr(os, "posix_fadvise"):
        raise ConfigError("loading: this system cannot drop files from its cache, so no disk.")
    set_threads(args.threads)
    device, console = resolve_device(args.device), Console()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        weight_bytes = _write_checkpoint(args, Path(folder))
        rows = _measure(args, Path(folder), device)
    console.print(_table(rows, weight_bytes, device))
    content = {
        "settings": settings_of(args),
        "device": device.type,
        "machine": machine_in_words(device.type),
        "weight_bytes": weight_bytes,
        "bar": BAR,
        "rows": [rounded(asdict(row) | _derived(row, weight_bytes)) for row in rows],
    }
    write_output(args, console, content)
    return 0


def _write_checkpoint(args: argparse.Namespace, folder: Path) -> int:
    loaded = load_shape(
        args.shape,
        dtype=args.dtype,
        device=torch.device("cpu"),
        layers=args.layers,
        fuse_projections=False,
    )
    loaded.model.save_pretrained(folder, max_shard_size=_SHARD)
    for path in _files(folder):
        with path.open("rb") as file:
            # Pages that are not on the disk yet cannot be dropped from the cache.
            os.fsync(file.fileno())
    return loaded.weight_bytes


def _measure(args: argparse.Namespace, folder: Path, device: torch.device) -> list[Loading]:
    rows = [
        Loading(source=source, read_s=[], load_s=[], transformers_s=[])
        for source in ("disk", "cache")
    ]
    load = partial(_load, folder, args.dtype, device)
    load_by_transformers = partial(_load_by_transformers, folder, args.dtype, device)
    load()
    load_by_transformers()
    for row in args.rounds * rows:
        for seconds, measured in (
            (row.read_s, partial(_read, folder)),
            (row.load_s, load),
            (row.transformers_s, load_by_transformers),
        ):
            if row.source == "disk":
                _drop_from_cache(folder)
            begin = time.perf_counter()
            measured()
            seconds.append(time.perf_counter() - begin)
            gc.collect()
    return rows


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _drop_from_cache(folder: Path) -> None:
    for path in _files(folder):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(folder: Path) -> None:
    piece = bytearray(_PIECE_BYTES)
    for path in _files(folder):
        with path.open("rb", buffering=0) as file:
            while file.readinto(piece):
                pass


def _load(folder: Path, dtype: str, device: torch.device) -> None:
    _await_weights(load_model(str(folder), dtype=dtype, device=device).model)


def _load_by_transformers(folder: Path, dtype: str, device: torch.device) -> None:
    options = {} if device.type == "cpu" else {"device_map": {"": device}}
    _await_weights(AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, **options))


@torch.inference_mode()
def _await_weights(model: nn.Module) -> None:
    """Wait for the device, or look at every page of memory that holds weights."""
    for weight in model.parameters():
        if weight.device.type == "cuda":
            torch.cuda.synchronize(weight.device)
            return
        weight.flatten()[:: _PAGE_BYTES // weight.element_size()].sum()


def _derived(row: Loading, weight_bytes: int) -> dict[str, Any]:
    return {
        "ratio": row.ratio,
        "transformers_ratio": median(row.transformers_s) / median(row.read_s),
        "read_gigabytes_per_s": weight_bytes / 1e9 / median(row.read_s),
        "load_gigabytes_per_s": weight_bytes / 1e9 / median(row.load_s),
        "is_met": row.ratio <= BAR,
    }


def _table(rows: list[Loading], weight_bytes: int, device: torch.device) -> Table:
    table = Table(
        title=f"loading {weight_bytes / 1e9:.2f} GB to {device}, {machine_in_words(device.type)}"
    )
    table.add_column("files in")
    for column in ("read s", "load s", "transformers s", "GB/s", f"load / read (bar {BAR})"):
        table.add_column(column, justify="right")
    for row in rows:
        derived = _derived(row, weight_bytes)
        table.add_row(
            row.source,
            _spread(row.read_s),
            _spread(row.load_s),
            _spread(row.transformers_s),
            f"{derived['load_gigabytes_per_s']:.2f}",
            f"{row.ratio:.2f}",
        )
    return table


def _spread(seconds: list[float]) -> str:
    return f"{median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})"


if __name__ == "__main__":
    raise SystemExit(run_program(__doc__, add_flags, run))
