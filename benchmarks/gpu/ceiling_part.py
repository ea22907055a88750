"""What the device can do at most."""

from __future__ import annotations

from benchmarks.gpu.part import Notes
from benchmarks.gpu.workshop import Workshop


def run(workshop: Workshop, notes: Notes) -> None:
    """Measure the ceilings that other parts are compared with."""
    ceilings = workshop.ceilings
    notes.add("copy bandwidth, read and written", ceilings.copy_bytes_per_s / 1e12, "TB/s")
    notes.add("read bandwidth", ceilings.read_bytes_per_s / 1e12, "TB/s")
    rows = workshop.sizes.ceiling_rows
    notes.add(f"matrix product {rows}^3", ceilings.flops_per_s / 1e12, "TFLOP/s")
