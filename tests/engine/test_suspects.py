"""Who is refused for having crashed the engine, and who is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.client.step_note import StepNote, read_step_note
from engine.client.suspects import Suspects, digest_of
from engine.door import make_requests
from engine.errors import EngineRestartingError, RefusedRequestError
from engine.request import Request
from engine.sampling_params import SamplingParams
from engine.structured_output import StructuredOutput
from tests.doubles import FakeCore


def made(name: str, first: int = 10, **values: object) -> list[Request]:
    params = SamplingParams(**{"max_tokens": 6, "ignore_eos": True} | values)  # type: ignore[arg-type]
    return make_requests([first, 20, 21], params, request_id=name, info=FakeCore().info)


def crash(suspects: Suspects, *firsts: int) -> None:
    """Let the engine crash in a step of requests that begin so."""
    requests = [made(f"r{first}", first)[0] for first in firsts]
    for request in requests:
        suspects.enter(request)
    ids = [request.request_id for request in requests]
    assert suspects.blame(frozenset(ids)) == sorted(ids)


def is_refused(suspects: Suspects, first: int) -> bool:
    try:
        suspects.check(made("again", first))
    except RefusedRequestError:
        return True
    return False


def test_who_waited_outside_of_the_step_is_not_blamed() -> None:
    suspects = Suspects()
    for _ in range(3):
        for first in (1, 2):
            suspects.enter(made(f"r{first}", first)[0])
        assert suspects.blame(frozenset(["r1-0"])) == ["r1-0"]
    assert is_refused(suspects, 1)
    assert not is_refused(suspects, 2)


def test_companions_of_two_crashes_are_tried_one_at_a_time() -> None:
    suspects = Suspects()
    crash(suspects, 1, 2, 3)
    crash(suspects, 1, 2, 4)
    assert not any(is_refused(suspects, first) for first in (1, 2, 3, 4))
    (first,) = made("a", 1)
    suspects.check([first])
    suspects.enter(first)
    with pytest.raises(EngineRestartingError, match="one at a time"):
        suspects.check(made("b", 2))
    suspects.check(made("c", 3))
    suspects.leave(first.request_id, is_served=True)
    suspects.check(made("b", 2))
    crash(suspects, 2, 3, 4)
    assert is_refused(suspects, 2)
    assert not any(is_refused(suspects, first) for first in (1, 3, 4))


def test_who_is_blamed_is_named_as_callers_know_them() -> None:
    suspects = Suspects()
    for name, first, external_id in (("a", 10, "mine"), ("b", 11, "mine"), ("c", 12, "")):
        for request in made(name, first):
            request.external_id = external_id
            suspects.enter(request)
    step = frozenset(suspects._open)
    (gone,) = [request_id for request_id in step if request_id.startswith("c")]
    suspects.leave(gone, is_served=False)
    assert suspects.blame(step) == ["mine", gone]


def test_who_is_served_is_cleared() -> None:
    suspects = Suspects()
    crash(suspects, 1)
    (request,) = made("a", 1)
    suspects.enter(request)
    suspects.leave(request.request_id, is_served=True)
    crash(suspects, 1)
    assert not is_refused(suspects, 1)


def test_only_so_many_are_remembered() -> None:
    suspects = Suspects(max_digests=3)
    for first in range(1, 6):
        crash(suspects, first)
        crash(suspects, first)
    assert [is_refused(suspects, first) for first in range(1, 6)] == [False] * 2 + [True] * 3
    assert len(suspects._records) == 3


def test_a_digest_is_of_what_is_asked() -> None:
    same = [made("a", 1, seed=1), made("b", 1, seed=2), made("c", 1)]
    assert len({digest_of(requests[0]) for requests in same}) == 1
    others = [made("d", 2), made("e", 1, temperature=0.5), made("f", 1, max_tokens=7)]
    assert len({digest_of(requests[0]) for requests in [*others, same[0]]}) == 4
    biases = ({3: 1.0, 200: -2.0}, {200: -2.0, 3: 1.0})
    shaped = StructuredOutput(kind="regex", text="[a-z]+")
    values = {"allowed_token_ids": (7, 3), "structured_output": shaped, "ignore_eos": False}
    rich = [digest_of(made("g", 1, logit_bias=bias, **values)[0]) for bias in biases]
    assert rich[0] == rich[1]


def test_a_crash_while_nothing_is_computed_is_nobodys() -> None:
    suspects = Suspects()
    (request,) = made("a", 1)
    suspects.enter(request)
    suspects.leave(request.request_id, is_served=False)
    suspects.forget_left()
    assert suspects.blame(frozenset([request.request_id])) == []
    (request,) = made("b", 1)
    suspects.enter(request)
    suspects.leave(request.request_id, is_served=True)
    assert suspects.blame(frozenset([request.request_id])) == []


def test_only_so_many_who_left_are_remembered() -> None:
    suspects = Suspects()
    for number in range(1000):
        (request,) = made(f"r{number}")
        suspects.enter(request)
        suspects.leave(request.request_id, is_served=False)
    assert len(suspects._left) == 256
    assert suspects.blame(frozenset(["r1-0", "r999-0"])) == ["r999-0"]


def test_a_step_note_gives_what_was_written_last(tmp_path: Path) -> None:
    assert read_step_note(tmp_path) == frozenset()
    note = StepNote(tmp_path)
    assert read_step_note(tmp_path) == frozenset()
    for ids in ({"a-0", "b-0", "a long one"}, {"b-0"}, {"b-0"}):
        note.write(ids)
        assert read_step_note(tmp_path) == ids
