"""A little of every kind of chaos; `make chaos` does it in full, and judges times too."""

from __future__ import annotations

import pytest

from tests.chaos.__main__ import PHASES, run_phase
from tests.chaos.sizes import SHORT


@pytest.mark.parametrize("phase", PHASES)
def test_no_law_breaks(phase: str) -> None:
    finding = run_phase(phase, SHORT, seed=1)
    assert not finding.told
