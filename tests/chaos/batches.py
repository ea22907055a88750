"""A batch whose server is killed again and again: every line is answered once, as without that."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from tests.batch_runs import make_lines, run_batch
from tests.chaos.findings import Finding
from tests.chaos.sizes import Sizes


def run(finding: Finding, sizes: Sizes, rng: random.Random) -> None:
    """Answer the same lines twice, once in peace."""
    num_lines, num_kills = sizes.batch_lines, sizes.batch_kills
    lines = make_lines(num_lines, rng)
    share = num_lines / (num_kills + 1)
    kill_at = [int(share * (number + rng.random())) for number in range(num_kills)]
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        for name in ("calm", "killed"):
            (Path(folder) / name).mkdir()
        calm = run_batch(lines, Path(folder) / "calm")
        killed = run_batch(lines, Path(folder) / "killed", kill_at=kill_at, rng=rng)
    finding.numbers |= {
        "lines": num_lines,
        "kills, at lines": killed.done_at_kills,
        "in peace, s": round(calm.seconds, 1),
        "killed, s": round(killed.seconds, 1),
    }
    for name, batch in (("in peace", calm), ("killed", killed)):
        finding.hold(batch.status == "completed", f"{name}: the batch ended as {batch.status}")
        finding.hold(len(batch.texts) == num_lines, f"{name}: {len(batch.texts)} lines answered")
        twice = sum(times > 1 for times in batch.times.values())
        finding.hold(not twice, f"{name}: {twice} lines stand in the files more than once")
    differing = sum(calm.texts.get(name) != text for name, text in killed.texts.items())
    finding.hold(not differing, f"{differing} answers are not those of the batch in peace")
