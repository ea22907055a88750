"""A peer that writes the last token of each prompt plus one, two, three; run as a program."""

from __future__ import annotations

import os
import sys
from typing import Any

from benchmarks.peers.protocol import Load, Run, work


class FakePeer:
    """Does as the dtype, the way or the seed says."""

    def __init__(self, load: Load) -> None:
        if load.way == "cannot load":
            raise ValueError("no such weights")
        self.versions = {"fake": "1.0"}
        self.settings: dict[str, Any] = {"way": load.way, "threads": os.environ["OMP_NUM_THREADS"]}

    def run(self, run: Run) -> list[list[int]]:
        """Answer, fail, end or answer too little."""
        print("what a peer prints is no answer")  # noqa: T201
        if run.seed == 1:
            raise RuntimeError("out of blocks")
        if run.seed == 2:
            sys.stderr.write("a crash\n")
            sys.stderr.flush()
            os._exit(3)
        count = run.max_tokens - (run.seed == 3)
        return [[prompt[-1] + number + 1 for number in range(count)] for prompt in run.prompts]


if __name__ == "__main__":
    work(FakePeer)
