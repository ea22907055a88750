"""What linear layers take on a CPU, by shape, rows and kind of weight.

Each kind multiplies in the way that the engine has for it: float32 as torch does, float32 and
bfloat16 reordered, int8 with activations of either. Every shape has so many weights
in turn that they do not all stay in the nearest caches, as in a model; kinds take turns, so that
their ratios hold on a busy machine. A kind that this machine has no kernels for is left out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from benchmarks.program import add_output_flags, run_program, write_output
from benchmarks.report import machine_in_words, rounded, settings_of
from benchmarks.sweep_flags import numbers
from benchmarks.workbench import check_at_least
from engine.errors import ConfigError
from engine.model.int8_weights import Int8Weight
from engine.model.linear import linear
from engine.model.packed_weights import can_pack, pack
from engine.model_pair import set_threads
from kernels.packed_matrix import serves

# Those of a 13.7 M-parameter model with fused projections, then of a Llama of 125 M.
_SHAPES = "960x320,320x320,1728x320,320x864,4096x320,2304x768,768x768,4096x768,768x2048,32000x768"
_KIB = 2**10

Multiply = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Kind:
    """A way to hold a weight and multiply with it.

    Attributes:
        name: for tables.
        dtype: of activations.
        make: takes a float32 weight [out_features, in_features] to what multiplies.
    """

    name: str
    dtype: torch.dtype
    make: Callable[[torch.Tensor], Multiply]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What one kind took at one shape and number of rows.

    Attributes:
        out_features, in_features: of the layer.
        rows: of the input.
        kind: of weight.
        microseconds: of one product on average, by round.
    """

    out_features: int
    in_features: int
    rows: int
    kind: str
    microseconds: list[float]


def kinds() -> list[Kind]:
    """Give the kinds that this machine has kernels for."""
    found = [Kind("float32", torch.float32, _plain)]
    for dtype, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
        if can_pack(torch.zeros(1, 2, dtype=dtype)):
            found.append(Kind(f"{name} packed", dtype, _packed_in(dtype)))
    for dtype, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
        if serves(dtype):
            found.append(Kind(f"int8, {name} rows", dtype, _int8))
    return found


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the program's flags."""
    parser.add_argument("--shapes", default=_SHAPES, help=f"outputs x inputs (default: {_SHAPES})")
    parser.add_argument("--rows", default="1,2,5,8,32", help="default: 1,2,5,8,32")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--rounds", type=int, default=9, help="default: 9, after one to warm up")
    parser.add_argument("--products", type=int, default=20, help="per round (default: 20)")
    parser.add_argument(
        "--weights-kib", type=int, default=60 * _KIB, help="of float32, per shape (default: 61440)"
    )
    add_output_flags(parser, "linear_cpu")


@torch.inference_mode()
def run(args: argparse.Namespace) -> int:
    """Measure, and tell.

    Raises:
        ConfigError: a setting cannot be honoured.
    """
    for name in ("threads", "rounds", "products", "weights_kib"):
        check_at_least(name.replace("_", "-"), getattr(args, name), 1)
    shapes, rows = _shapes(args.shapes), numbers("rows", args.rows, int)
    check_at_least("rows", min(rows, default=0), 1)
    set_threads(args.threads)
    console, found = Console(), kinds()
    timings: list[Timing] = []
    for shape in shapes:
        of_shape = _measure(args, shape, rows, found)
        console.print(_table(shape, of_shape))
        timings += of_shape
    content = {
        "settings": settings_of(args),
        "machine": machine_in_words("cpu"),
        "rows": [rounded(asdict(t) | {"median": median(t.microseconds)}) for t in timings],
    }
    write_output(args, console, content)
    return 0


def _shapes(text: str) -> list[tuple[int, int]]:
    try:
        shapes = [(int(o), int(i)) for o, i in (word.split("x") for word in text.split(","))]
    except ValueError:
        raise ConfigError(f"shapes: {text!r} needs outputs x inputs, as in 960x320.") from None
    check_at_least("shapes", min(min(shape) for shape in shapes), 1)
    return shapes


def _measure(
    args: argparse.Namespace, shape: tuple[int, int], rows: Sequence[int], found: list[Kind]
) -> list[Timing]:
    out_features, in_features = shape
    size = out_features * in_features * torch.float32.itemsize
    weights = [torch.randn(shape) for _ in range(max(1, args.weights_kib * _KIB // size))]
    made = {kind.name: cycle([kind.make(weight) for weight in weights]) for kind in found}
    timings = [
        Timing(
            out_features=out_features,
            in_features=in_features,
            rows=count,
            kind=kind.name,
            microseconds=[],
        )
        for count in rows
        for kind in found
    ]
    dtypes = {kind.name: kind.dtype for kind in found}
    for index in range(args.rounds + 1):
        for timing in timings:
            x = torch.randn(timing.rows, in_features).to(dtypes[timing.kind])
            multiplies = made[timing.kind]
            begin = time.perf_counter()
            for _ in range(args.products):
                next(multiplies)(x)
            seconds = time.perf_counter() - begin
            if index:
                timing.microseconds.append(1e6 * seconds / args.products)
    return timings


def _plain(weight: torch.Tensor) -> Multiply:
    return lambda x: functional.linear(x, weight)


def _packed_in(dtype: torch.dtype) -> Callable[[torch.Tensor], Multiply]:
    def make(weight: torch.Tensor) -> Multiply:
        plain = weight.to(dtype)
        packed = pack(plain)
        return lambda x: linear(x, plain, None, packed)

    return make


def _int8(weight: torch.Tensor) -> Multiply:
    held = Int8Weight.of(weight)
    return held.multiply


def _table(shape: tuple[int, int], timings: list[Timing]) -> Table:
    title = f"{shape[0]} outputs of {shape[1]} inputs: microseconds (range)"
    table = Table(title=title, title_justify="left")
    table.add_column("rows", justify="right")
    names = list(dict.fromkeys(t.kind for t in timings))
    for name in names:
        table.add_column(name, justify="right")
    for count in dict.fromkeys(t.rows for t in timings):
        cells = {t.kind: _spread(t.microseconds) for t in timings if t.rows == count}
        table.add_row(str(count), *(cells[name] for name in names))
    return table


def _spread(times: list[float]) -> str:
    return f"{median(times):.1f}\n{min(times):.1f}-{max(times):.1f}"


if __name__ == "__main__":
    raise SystemExit(run_program(__doc__, add_flags, run))
