"""When an engine counts as hung, and how long to wait before it is started anew."""

from __future__ import annotations

import pytest

from engine.client.supervision import RestartPolicy, SupervisionConfig
from engine.client.watchdog import Watchdog
from engine.errors import ConfigError


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_restarts_wait_ever_longer_and_old_ones_are_forgotten() -> None:
    clock = Clock()
    config = SupervisionConfig(engine_restarts=3, engine_restart_window_s=100.0)
    policy = RestartPolicy(config, clock)
    assert [policy.next_delay_s() for _ in range(4)] == [0.25, 0.5, 1.0, None]
    clock.now += 101.0
    assert policy.next_delay_s() == 0.25
    never = RestartPolicy(SupervisionConfig(engine_restarts=0), clock)
    assert never.next_delay_s() is None
    often = RestartPolicy(SupervisionConfig(engine_restarts=50), clock)
    assert max(often.next_delay_s() or 0.0 for _ in range(50)) == 4.0


@pytest.mark.parametrize(
    "settings",
    [
        {"engine_restarts": -1},
        {"engine_restart_window_s": 0.0},
        {"watchdog_s": 0.5},
        {"watchdog_start_s": -1.0},
    ],
)
def test_settings_that_cannot_be_honoured_are_named(settings: dict[str, float]) -> None:
    (name,) = settings
    with pytest.raises(ConfigError, match=name):
        SupervisionConfig(**settings)  # type: ignore[arg-type]


def seconds_until_overdue(dog: Watchdog, clock: Clock, most: float = 10_000.0) -> float | None:
    start = clock.now
    while clock.now - start < most:
        clock.now += 0.25
        if dog.overdue_s() is not None:
            return clock.now - start
    return None


def test_the_watchdog_gives_each_phase_its_time() -> None:
    clock = Clock()
    config = SupervisionConfig(watchdog_s=100.0, watchdog_start_s=1000.0)
    dog = Watchdog(config, clock)
    assert seconds_until_overdue(dog, clock) == 1000.25
    dog = Watchdog(config, clock)
    for _ in range(15):
        dog.hear_step()
    assert seconds_until_overdue(dog, clock) == 1000.25
    dog.hear_step()
    assert seconds_until_overdue(dog, clock) == 100.25
    dog.hear_life(is_idle=True)
    assert seconds_until_overdue(dog, clock) == 30.25
    dog.hear_life(is_idle=True)
    dog.note_work()
    assert seconds_until_overdue(dog, clock) == 100.25


def test_a_short_limit_leaves_a_resting_engine_time_for_its_signs_of_life() -> None:
    clock = Clock()
    dog = Watchdog(SupervisionConfig(watchdog_s=1.0), clock)
    for _ in range(16):
        dog.hear_step()
    dog.hear_life(is_idle=True)
    # They come every second, and later on a machine that is busy.
    assert seconds_until_overdue(dog, clock) == 4.25
    dog.hear_life(is_idle=True)
    dog.note_work()
    assert seconds_until_overdue(dog, clock) == 1.25


def test_work_that_arrives_while_others_work_gives_a_hung_step_no_more_time() -> None:
    clock = Clock()
    dog = Watchdog(SupervisionConfig(watchdog_s=100.0), clock)
    for _ in range(16):
        dog.hear_step()
    assert seconds_until_overdue(dog, clock, most=90.0) is None
    dog.note_work()
    assert seconds_until_overdue(dog, clock) == 10.25


def test_the_watchdog_can_be_switched_off() -> None:
    clock = Clock()
    dog = Watchdog(SupervisionConfig(watchdog_s=0.0, watchdog_start_s=0.0), clock)
    assert seconds_until_overdue(dog, clock) is None
    for _ in range(16):
        dog.hear_step()
    dog.hear_life(is_idle=True)
    assert seconds_until_overdue(dog, clock) is None
    for _ in range(16):
        dog.hear_step()
    assert seconds_until_overdue(dog, clock) is None


def test_a_pause_of_our_own_is_not_held_against_the_engine() -> None:
    clock = Clock()
    dog = Watchdog(SupervisionConfig(watchdog_s=100.0), clock)
    for _ in range(16):
        dog.hear_step()
    clock.now += 5000.0
    assert dog.overdue_s() is None
