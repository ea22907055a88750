"""A process that was started and all below it: stopped where they are, let go on, counted."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import Any

import psutil


@dataclass(frozen=True, slots=True)
class ProcessTree:
    """The processes of a program that may start others.

    Attributes:
        top: the one that was started.
    """

    top: subprocess.Popen[Any]

    def members(self) -> list[psutil.Process]:
        """Give the processes, as far as they live; none where the top one has ended."""
        if self.top.poll() is not None:
            return []
        top = psutil.Process(self.top.pid)
        return [top, *top.children(recursive=True)]

    def pause(self) -> None:
        """Stop all where they are, until `go_on`."""
        for process in self.members():
            process.suspend()

    def go_on(self) -> None:
        """Let all go on."""
        for process in self.members():
            process.resume()

    def cpu_seconds(self) -> float:
        """Give the processor time that all have used."""
        times = [process.cpu_times() for process in self.members()]
        return sum(each.user + each.system for each in times)
