"""Counters of energy are read where they are, and a wrap is no loss."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from benchmarks.serving.energy import find_meters, joules_since, readings


class FakeNvml:
    """NVIDIA's library with two GPUs, of which the second counts no energy."""

    def __init__(self) -> None:
        self.millijoules = 5000

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, count: ctypes.Array[ctypes.c_uint]) -> int:
        count._obj.value = 2  # type: ignore[attr-defined]
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, device: object) -> int:
        device._obj.value = index + 1  # type: ignore[attr-defined]
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, device: ctypes.c_void_p, energy: object) -> int:
        if device.value == 2:
            return 3
        energy._obj.value = self.millijoules  # type: ignore[attr-defined]
        return 0


class NoNvml:
    """A library that finds no driver."""

    def nvmlInit_v2(self) -> int:
        return 9


def package(top: Path, place: str, name: str, micros: int) -> Path:
    folder = top / place
    folder.mkdir()
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{micros}\n")
    (folder / "max_energy_range_uj").write_text("10000000\n")
    return folder / "energy_uj"


def test_packages_are_added_up_and_wrap(tmp_path: Path) -> None:
    counter = package(tmp_path, "intel-rapl:0", "package-0", 9_000_000)
    package(tmp_path, "intel-rapl:0:0", "core", 1)
    (tmp_path / "intel-rapl:1").mkdir()
    meters = find_meters(tmp_path, NoNvml())
    assert [meter.name for meter in meters] == ["RAPL package-0"]
    before = readings(meters)
    counter.write_text("500000\n")
    assert joules_since(meters, before) == pytest.approx(1.5)


def test_gpus_that_count_are_read(tmp_path: Path) -> None:
    nvml = FakeNvml()
    meters = find_meters(tmp_path, nvml)
    assert [meter.name for meter in meters] == ["NVML GPU 0"]
    before = readings(meters)
    nvml.millijoules += 2500
    assert joules_since(meters, before) == pytest.approx(2.5)


def test_no_meter_is_no_number(tmp_path: Path) -> None:
    assert joules_since(find_meters(tmp_path, NoNvml()), []) is None
