"""Joules of this machine, where something counts them: RAPL for processors, NVML for NVIDIA's GPUs.

Both are counters that are read before and after. What is absent is named; nothing is estimated.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
_NVML = "libnvidia-ml.so.1"
_MICRO, _MILLI = 1e-6, 1e-3

Counter = Callable[[], float]
"""Gives joules since some moment."""


@dataclass(frozen=True, slots=True)
class Meter:
    """One counter of joules.

    Attributes:
        name: of what it counts.
        read: the counter.
        wraps_at: joules at which it begins anew; None = never.
    """

    name: str
    read: Counter
    wraps_at: float | None = None

    def between(self, before: float, after: float) -> float:
        """Give the joules between two readings, at most one wrap apart."""
        if after < before and self.wraps_at is not None:
            return after - before + self.wraps_at
        return after - before


def find_meters(powercap: Path = POWERCAP, nvml: Any = None) -> list[Meter]:
    """Give the meters of this machine that can be read; often there are none.

    Args:
        powercap: where the system shows RAPL's counters.
        nvml: NVIDIA's library; None = the system's, if it has one.
    """
    return [*_rapl(powercap), *_gpus(_load_nvml() if nvml is None else nvml)]


def readings(meters: Sequence[Meter]) -> list[float]:
    """Read all meters."""
    return [meter.read() for meter in meters]


def joules_since(meters: Sequence[Meter], before: Sequence[float]) -> float | None:
    """Add up what all meters counted since; None where there is no meter."""
    if not meters:
        return None
    pairs = zip(meters, before, readings(meters), strict=True)
    return sum(meter.between(begin, end) for meter, begin, end in pairs)


def _rapl(powercap: Path) -> list[Meter]:
    """Give one meter for each package; its parts (`intel-rapl:0:0`) are counted in it."""
    meters = []
    for folder in sorted(powercap.glob("intel-rapl:*")):
        counter = folder / "energy_uj"
        if folder.name.count(":") != 1:
            continue
        try:
            _number(counter)
            wraps_at = _number(folder / "max_energy_range_uj") * _MICRO
        except (OSError, ValueError):
            continue
        read = _reader(counter)
        meters.append(Meter(f"RAPL {(folder / 'name').read_text().strip()}", read, wraps_at))
    return meters


def _reader(counter: Path) -> Counter:
    return lambda: _number(counter) * _MICRO


def _number(path: Path) -> int:
    return int(path.read_text())


def _load_nvml() -> Any:
    try:
        return ctypes.CDLL(_NVML)
    except OSError:
        return None


def _gpus(nvml: Any) -> list[Meter]:
    count = ctypes.c_uint()
    if nvml is None or nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return []
    meters = []
    for index in range(count.value):
        device, energy = ctypes.c_void_p(), ctypes.c_ulonglong()
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)):
            continue
        # GPUs older than Volta count no energy.
        if not nvml.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(energy)):
            meters.append(Meter(f"NVML GPU {index}", _gpu_reader(nvml, device)))
    return meters


def _gpu_reader(nvml: Any, device: ctypes.c_void_p) -> Counter:
    def read() -> float:
        energy = ctypes.c_ulonglong()
        nvml.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(energy))
        return energy.value * _MILLI

    return read
