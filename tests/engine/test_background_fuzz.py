"""Random traffic, part of it background work, over a pool that is too small for all of it."""

from __future__ import annotations

import pytest

from engine.request import Request, RequestStatus
from tests.engine.fake_model import make_request
from tests.engine.test_scheduler_fuzz import NUM_BLOCKS, Traffic

NUM_ACTIONS = 4_000
MAX_NUM_SEQS = 6
SLOWDOWN = 0.1


class SharedTraffic(Traffic):
    """Traffic of which about half is background work, on a machine whose steps take known times."""

    per_token_s = 0.02
    num_shared_steps = 0
    num_background_preemptions = 0

    def seconds(self, num_tokens: int) -> float:
        return 1.0 + self.per_token_s * num_tokens

    def add(self) -> None:
        if self.rng.random() < 0.5:
            super().add()
            return
        rng = self.rng
        request = make_request(
            f"b{len(self.requests)}",
            [rng.randrange(2)] * rng.randrange(0, 24) + [rng.randrange(10, 14)],
            max_tokens=rng.randrange(1, 24),
            priority=rng.choice([0, -9]),
            may_stop=True,
            is_background=True,
        )
        self.requests.append(request)
        self.born[request.request_id] = self.num_steps
        self.scheduler.add(request)

    def step(self) -> None:
        scheduler = self.scheduler
        before = {r.request_id: r.num_preemptions for r in scheduler._running}
        output = scheduler.schedule()
        self.kv.check_invariants()
        self.check_turns(output.preempted, before)
        shares = output.scheduled
        assert len(shares) <= MAX_NUM_SEQS
        assert output.num_tokens <= 24
        outcome = self.model.run(output)
        counts = [
            (s.request.is_background, s.num_tokens + o.num_draft_tokens)
            for s, o in zip(shares, outcome.outcomes, strict=True)
        ]
        deltas = scheduler.update(output, outcome)
        self.kv.check_invariants()
        assert shares or deltas or not scheduler.requests, "no progress"
        if counts:
            num_tokens = sum(count for _, count in counts)
            scheduler.background.observe(output, outcome, self.seconds(num_tokens))
            self.num_shared_steps += len({whose for whose, _ in counts}) == 2
        self.num_steps += 1
        self.clock.now_s += 1.0
        for delta in deltas:
            self.hear(delta)

    def check_turns(self, preempted: list[Request], before: dict[str, int]) -> None:
        """Nobody loses blocks, nor waits for them, while background work holds some."""
        running = list(self.scheduler._running)
        held = [request for request in running if request.is_background]
        for request in preempted:
            self.num_background_preemptions += request.is_background
            if not request.is_background and held:
                # Who came in this very step took its blocks in its turn, behind everybody else.
                assert all(r.request_id not in before for r in held)
        waiting = [r for r in self.scheduler._waiting if not r.is_background]
        entered = [r for r in held if r.request_id not in before]
        assert not (waiting and entered), "background work overtook somebody"


@pytest.mark.parametrize(
    "traffic",
    [
        pytest.param(SharedTraffic(11, 0, False), id="plain"),
        pytest.param(SharedTraffic(11, 3, False), id="drafts_without_a_model"),
        pytest.param(SharedTraffic(11, 4, True), id="draft_model"),
        pytest.param(SharedTraffic(11, 2, True, prefix_caching=False), id="without_prefix_cache"),
        pytest.param(SharedTraffic(12, 4, True, 20, is_moody=True), id="draft_that_rests"),
    ],
)
def test_background_work_takes_nothing_and_comes_to_its_end(traffic: SharedTraffic) -> None:
    for _ in range(NUM_ACTIONS):
        traffic.act()
    while traffic.scheduler.has_unfinished:
        traffic.step()

    for request in traffic.requests:
        assert request.status is RequestStatus.FINISHED
        traffic.check_ending(request)
    assert traffic.num_shared_steps > 100
    assert traffic.num_background_preemptions > 20
    assert traffic.kv.num_free_blocks == NUM_BLOCKS - 1
    assert traffic.scheduler.background.num_requests == 0
