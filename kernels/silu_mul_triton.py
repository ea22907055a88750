"""The kernel of `kernels/silu_mul.py`: a program per piece of a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 1024


def silu_mul_triton(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Do what `silu_mul` does.

    Raises:
        ValueError: the shapes or dtypes differ, or the last dimension is not dense.
    """
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(
            f"gate {list(gate.shape)} of {gate.dtype} does not fit up {list(up.shape)} of "
            f"{up.dtype}."
        )
    size = gate.shape[-1]
    gate_rows, up_rows = gate.reshape(-1, size), up.reshape(-1, size)
    if gate_rows.stride(1) != 1 or up_rows.stride(1) != 1:
        raise ValueError("The last dimension of gate and up must be dense.")
    output = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if output.numel():
        silu_mul_kernel[(len(gate_rows), triton.cdiv(size, _BLOCK))](
            gate_rows, up_rows, output, gate_rows.stride(0), up_rows.stride(0), size, BLOCK=_BLOCK
        )
    return output


@triton.jit  # type: ignore[untyped-decorator]
def silu_mul_kernel(
    gate: tl.tensor,
    up: tl.tensor,
    output: tl.tensor,
    gate_stride: tl.tensor,
    up_stride: tl.tensor,
    size: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Grid: (rows, pieces of a row)."""
    row = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = index < size
    dtype = output.dtype.element_ty
    gates = tl.load(gate + row * gate_stride + index, mask=is_inside, other=0.0).to(tl.float32)
    ups = tl.load(up + row * up_stride + index, mask=is_inside, other=0.0).to(tl.float32)
    decay = tl.exp(-tl.abs(gates))  # of the absolute value: it cannot overflow
    sigmoid = tl.where(gates < 0.0, decay, 1.0) / (1.0 + decay)
    # Rounded in between, as two operations of torch would.
    gates = (gates * sigmoid).to(dtype).to(tl.float32)
    tl.store(output + row * size + index, (gates * ups).to(dtype), mask=is_inside)
