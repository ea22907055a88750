"""How `skinny_linear` cuts up a weight: by what was measured for a shape, or else by a rule.

`CANDIDATES` are what a tuner may time, `MEASURED` is where it writes what won. Knows shapes and the
sizes of a Hopper GPU, and needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MAX_ROWS = 64


@dataclass(frozen=True, slots=True)
class SkinnyConfig:
    """How a weight is cut up.

    Attributes:
        kind: `dot` uses the tensor cores, with rows padded to 16, 32 or 64; `vector` multiplies
            and adds in float32, for one row.
        block_n: output columns (rows of the weight) per program.
        block_k: how much of each of them a program reads at once.
        split_k: programs that share a column block's sum; above 1, a second kernel adds up.
        num_warps: warps per program.
        num_stages: blocks that a program has in flight.
    """

    kind: Literal["dot", "vector"]
    block_n: int
    block_k: int
    split_k: int = 1
    num_warps: int = 4
    num_stages: int = 4


CANDIDATES = (
    SkinnyConfig("vector", 1, 1024),
    SkinnyConfig("vector", 1, 2048),
    SkinnyConfig("vector", 1, 4096),
    SkinnyConfig("vector", 1, 2048, num_warps=8),
    SkinnyConfig("vector", 2, 1024),
    SkinnyConfig("vector", 4, 512),
    SkinnyConfig("vector", 8, 512),
    SkinnyConfig("dot", 16, 256, num_stages=5),
    SkinnyConfig("dot", 16, 512, num_stages=3),
    SkinnyConfig("dot", 16, 512, num_stages=4),
    SkinnyConfig("dot", 32, 128, num_stages=6),
    SkinnyConfig("dot", 32, 256, num_stages=3),
    SkinnyConfig("dot", 32, 256, num_stages=4),
    SkinnyConfig("dot", 32, 256, num_stages=5),
    SkinnyConfig("dot", 32, 256, num_stages=6),
    SkinnyConfig("dot", 64, 128, num_stages=3),
    SkinnyConfig("dot", 64, 128, num_stages=4),
    SkinnyConfig("dot", 64, 128, num_stages=5),
    SkinnyConfig("dot", 64, 256, num_stages=3),
    SkinnyConfig("dot", 64, 128, split_k=2, num_stages=3),
    SkinnyConfig("dot", 64, 128, split_k=2, num_stages=5),
    SkinnyConfig("dot", 64, 128, split_k=4),
    SkinnyConfig("dot", 128, 64, num_stages=4),
    SkinnyConfig("dot", 128, 64, num_warps=8, num_stages=5),
    SkinnyConfig("dot", 128, 128, num_warps=8, num_stages=3),
    SkinnyConfig("dot", 128, 64, split_k=4),
    SkinnyConfig("dot", 128, 64, split_k=8),
)

# (padded rows, N, K): what won there, on an H200 with Triton 3.6 and weights that no cache holds.
# Of more than one row only what beats the library's product stands here.
MEASURED: dict[tuple[int, int, int], SkinnyConfig] = {
    (1, 128256, 4096): SkinnyConfig("vector", 1, 4096),
    (16, 4096, 4096): SkinnyConfig("dot", 32, 256, num_stages=4),
    (16, 128256, 4096): SkinnyConfig("dot", 64, 128, num_stages=4),
    (32, 128256, 4096): SkinnyConfig("dot", 128, 128, num_warps=8, num_stages=3),
    (64, 128256, 4096): SkinnyConfig("dot", 128, 64, num_stages=4),
}

# Of an H100 or H200, which has this much shared memory per multiprocessor.
_NUM_PROCESSORS = 132
_SHARED_BYTES = 227 * 1024
# From here on a few idle multiprocessors make no difference: the memory is what is busy.
_FEW_PROGRAMS = 120


def padded_rows(num_rows: int) -> int:
    """The row count that shares a configuration: 1, 16, 32 or 64.

    Raises:
        ValueError: more rows than a configuration has.
    """
    for bound in (1, 16, 32, MAX_ROWS):
        if num_rows <= bound:
            return bound
    raise ValueError(f"{num_rows} rows; skinny_linear takes at most {MAX_ROWS}.")


def candidates(num_rows: int) -> list[SkinnyConfig]:
    """Give the `CANDIDATES` that can run with so many rows of 16 bits per number.

    Raises:
        ValueError: more than `MAX_ROWS` rows.
    """
    rows = padded_rows(num_rows)

    def fits(config: SkinnyConfig) -> bool:
        if config.kind == "vector":
            return rows == 1
        block_bytes = 2 * config.block_k * (config.block_n + max(16, rows))
        return block_bytes * config.num_stages <= _SHARED_BYTES

    return [config for config in CANDIDATES if fits(config)]


def is_faster(num_rows: int, num_columns: int, depth: int) -> bool:
    """Whether `skinny_linear` is faster than a library's product of these sizes.

    One row is; more are where they were measured to be.
    """
    if num_rows > MAX_ROWS:
        return False
    return num_rows == 1 or (padded_rows(num_rows), num_columns, depth) in MEASURED


def choose_config(num_rows: int, num_columns: int, depth: int) -> SkinnyConfig:
    """Give the configuration for M rows, N columns and a depth of K.

    Where nothing was measured, the rule is: the widest column block that still gives every
    multiprocessor a program, since each program reads all of x; pipelines as deep as leaves all
    programs room at once, where they fit at all, since a last wave of few programs does not fill
    the memory's queues; and for more than 16 rows, where x is no longer small beside a narrow
    block of the weight, a wide block whose depth is split.

    Raises:
        ValueError: more than `MAX_ROWS` rows.
    """
    rows = padded_rows(num_rows)
    measured = MEASURED.get((rows, num_columns, depth))
    if measured is not None:
        return measured
    if rows == 1:
        return SkinnyConfig("vector", 1, 1024)
    return _few_rows(num_columns) if rows == 16 else _more_rows(rows, num_columns, depth)


def _few_rows(num_columns: int) -> SkinnyConfig:
    """For up to 16 rows."""
    num_programs = -(-num_columns // 64)
    if num_columns < 32 * _FEW_PROGRAMS:
        return SkinnyConfig("dot", 16, 512, num_stages=4)
    if num_programs < _FEW_PROGRAMS:
        return SkinnyConfig("dot", 32, 256, num_stages=5)
    is_crowded = 2 * _NUM_PROCESSORS < num_programs <= 4 * _NUM_PROCESSORS
    return SkinnyConfig("dot", 64, 128, num_stages=3 if is_crowded else 5)


def _more_rows(rows: int, num_columns: int, depth: int) -> SkinnyConfig:
    """For 32 or 64 padded rows."""
    if num_columns >= 128 * _FEW_PROGRAMS:
        return SkinnyConfig("dot", 128, 64, num_warps=8, num_stages=4 if rows == MAX_ROWS else 5)
    num_programs, split = -(-num_columns // 64), 1
    while num_programs * split < _FEW_PROGRAMS and depth // (split * 2) >= 512:
        split *= 2
    has_two_each = rows == MAX_ROWS and num_programs * split > _NUM_PROCESSORS
    return SkinnyConfig("dot", 64, 128, split_k=split, num_stages=3 if has_two_each else 5)
