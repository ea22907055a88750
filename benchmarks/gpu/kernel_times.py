"""Times one kernel at one size and notes how near it comes to the copy bandwidth."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from benchmarks.gpu.device_times import Call, Times, num_copies, time_calls
from benchmarks.gpu.part import Notes
from benchmarks.gpu.workshop import Workshop


def time_copies(workshop: Workshop, make: Callable[[], Call], num_bytes: int) -> Times:
    """Time a call over as many sets of buffers as the cache cannot hold.

    Args:
        workshop: says where and how often.
        make: makes a set, and gives what is called over it.
        num_bytes: of a set.
    """
    calls = [make() for _ in range(num_copies(num_bytes, workshop.device))]
    return time_calls(calls, workshop.device, repeats=workshop.sizes.repeats)


def note_bandwidth(
    workshop: Workshop, notes: Notes, name: str, times: Times, num_bytes: int
) -> None:
    """Note a kernel's share of the copy bandwidth.

    Args:
        workshop: knows the bandwidth.
        notes: where it is noted.
        name: of the kernel and its size.
        times: of one call.
        num_bytes: that it has to read and write.
    """
    ceiling = workshop.ceilings.copy_bytes_per_s
    shares = [num_bytes / seconds / ceiling for seconds in (times.high, times.low)]
    notes.add(
        f"{name}, of copy bandwidth",
        num_bytes / times.seconds / ceiling,
        spread=(shares[0], shares[1]),
    )
    notes.detail("kernels", name=name, us=times.seconds * 1e6, bytes=num_bytes)


def size_of(*tensors: torch.Tensor) -> int:
    """Give the bytes of tensors together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def each(notes: Notes, cases: Sequence[tuple[str, Callable[[], None]]]) -> None:
    """Run cases one by one, so that one that fails does not keep the others from being measured.

    Raises:
        RuntimeError: some failed; all were tried. Its cause is the first error.
    """
    errors: list[tuple[str, Exception]] = []
    for name, case in cases:
        try:
            case()
        except Exception as error:
            notes.detail("failed", name=name, error=f"{type(error).__name__}: {error}")
            errors.append((name, error))
    if errors:
        name, first = errors[0]
        raise RuntimeError(
            f"{len(errors)} of {len(cases)} cases failed; {name}: {type(first).__name__}: {first}"
        ) from first
