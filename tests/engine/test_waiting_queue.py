"""Service order: priorities, ageing, and first come first served inside one."""

from __future__ import annotations

import pytest

from engine.request import Request
from engine.waiting_queue import RequestQueue, ServiceOrder
from tests.engine.fake_model import make_request


def queue_of(*requests: Request, ageing_s: float = 30.0) -> RequestQueue:
    order = ServiceOrder(ageing_s)
    queue = RequestQueue(order)
    for request in requests:
        order.enter(request)
        queue.add(request)
    return queue


def ids(queue: RequestQueue) -> list[str]:
    return [request.request_id for request in queue]


def test_serves_the_lowest_priority_number_first() -> None:
    queue = queue_of(make_request("batch", 1, priority=5), make_request("chat", 1, priority=0))
    assert ids(queue) == ["chat", "batch"]


def test_serves_first_come_first_inside_one_priority() -> None:
    queue = queue_of(
        make_request("later", 1, arrival_time=2.0), make_request("sooner", 1, arrival_time=1.0)
    )
    assert ids(queue) == ["sooner", "later"]


def test_serves_those_that_came_at_once_in_the_order_they_were_added() -> None:
    names = [f"choice-{index}" for index in (2, 10, 1)]
    assert ids(queue_of(*(make_request(name, 1) for name in names))) == names


@pytest.mark.parametrize(("ageing_s", "first"), [(30.0, "patient"), (90.0, "urgent")])
def test_waiting_one_ageing_period_is_worth_one_priority(ageing_s: float, first: str) -> None:
    patient = make_request("patient", 1, priority=1, arrival_time=100.0)
    urgent = make_request("urgent", 1, priority=0, arrival_time=100.0 + 31.0)
    assert ids(queue_of(urgent, patient, ageing_s=ageing_s))[0] == first


def test_a_request_that_comes_back_takes_its_old_place() -> None:
    first, second = make_request("a", 1), make_request("b", 1)
    queue = queue_of(first, second)
    queue.discard(first)
    assert ids(queue) == ["b"]
    queue.add(first)
    assert ids(queue) == ["a", "b"]


def test_membership_is_by_request_and_discarding_a_stranger_is_harmless() -> None:
    first, second = make_request("a", 1), make_request("b", 1)
    queue = queue_of(first, second)
    queue.discard(second)
    queue.discard(second)
    assert first in queue
    assert second not in queue
    assert len(queue) == 1


def test_the_queue_may_change_while_it_is_read() -> None:
    queue = queue_of(*(make_request(name, 1) for name in "abc"))
    for request in queue:
        queue.discard(request)
    assert len(queue) == 0


def test_reads_backwards_from_the_least_urgent() -> None:
    queue = queue_of(*(make_request(name, 1) for name in "abc"))
    assert [request.request_id for request in reversed(queue)] == ["c", "b", "a"]
