"""Compiles Triton kernels for an H100 or H200 where there is no GPU; run as a program.

`python -m tests.kernels.hopper MODULE...` compiles the `CASES` of each module under
`tests.kernels` and prints what they need. A process of its own, because the tests' process runs
kernels in Triton's interpreter.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SHARED_MEMORY_BYTES = 227 * 1024
# Some registers kept in memory are no loss; more are a tile that is too large.
MOST_SPILLED_BYTES = 384


@dataclass(frozen=True)
class HopperCase:
    """One specialisation of a kernel.

    Attributes:
        kernel: the `@triton.jit` function.
        signature: types of the arguments that are no constants, such as `*bf16`, `fp32`, `i32`.
        constants: values of the `tl.constexpr` arguments.
        aligned: arguments that are multiples of 16, as the launcher would find them.
        num_warps: warps per program.
        num_stages: depth of software pipelining.
    """

    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 2
    options: Mapping[str, Any] = field(default_factory=dict)


def compile_case(case: HopperCase) -> str:
    """Compile to machine code; returns one line on what it needs.

    Raises:
        AssertionError: it needs more shared memory than a block can have, or keeps more registers
            in memory than is cheap.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    constants = {(names.index(name),): value for name, value in case.constants.items()}
    signature = {**case.signature, **dict.fromkeys(case.constants, "constexpr")}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in case.aligned}
    source = ASTSource(
        fn=case.kernel,
        signature={name: signature[name] for name in names},
        constexprs=constants,
        attrs=attributes,
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, **case.options}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    shared = compiled.metadata.shared
    assert shared <= SHARED_MEMORY_BYTES, f"{shared} bytes of shared memory"
    registers, stack = _resources(compiled.asm["cubin"])
    assert stack <= MOST_SPILLED_BYTES, f"{stack} bytes of registers in memory"
    return f"{case.kernel.__name__} shared={shared} registers={registers} stack={stack}"


def _resources(cubin: bytes) -> tuple[int, int]:
    """Read how many registers and how many bytes of stack a thread needs."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    return int(found[1]), int(found[2])


def main(module_names: list[str]) -> None:
    """Compile every case of the modules."""
    for module_name in module_names:
        cases = importlib.import_module(f"tests.kernels.{module_name}").CASES
        for case in cases:
            print(compile_case(case))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
