"""Made-up measurements."""

from __future__ import annotations

from benchmarks.sweep import Measurement


def measurement(
    drafter: str,
    draft_tokens: int | None,
    speed_up: float,
    *,
    concurrency: int = 1,
    temperature: float = 0.0,
    spread: float = 0.05,
    workload: str = "chat",
) -> Measurement:
    """Make a lane's measurement at one point, of which only the speed matters."""
    positions = draft_tokens or 3
    return Measurement(
        workload=workload,
        temperature=temperature,
        drafter=drafter,
        concurrency=concurrency,
        draft_tokens=draft_tokens,
        num_tokens=100,
        seconds=1.0 / speed_up,
        tokens_per_second=[95.0 * speed_up, 105.0 * speed_up],
        speed_up=speed_up,
        speed_up_spread=(speed_up - spread, speed_up + spread),
        tokens_per_target_pass=1.0 if draft_tokens == 0 else 2.5,
        acceptance_rate=0.0 if draft_tokens == 0 else 0.6,
        drafted_per_position=[] if draft_tokens == 0 else [50] * positions,
        accepted_per_position=[] if draft_tokens == 0 else list(range(45, 45 - positions, -1)),
        draft_share=0.2,
        target_share=0.7,
        num_equal_answers=4,
        num_compared_answers=4,
    )


def over_load(
    drafter: str, draft_tokens: int | None, speed_ups: dict[int, float], spread: float = 0.05
) -> list[Measurement]:
    """Make one lane's measurements, by concurrency."""
    return [
        measurement(drafter, draft_tokens, speed_up, concurrency=load, spread=spread)
        for load, speed_up in speed_ups.items()
    ]
