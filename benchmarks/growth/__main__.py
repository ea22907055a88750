"""`python -m benchmarks.growth`: how cost grows with work."""

from __future__ import annotations

import sys

from benchmarks.growth import program
from benchmarks.program import run_program

if __name__ == "__main__":
    sys.exit(run_program(program.__doc__, program.add_flags, program.run))
