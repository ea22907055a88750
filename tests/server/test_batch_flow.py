"""The flow of records: how many are under way, in which order, and how it ends."""

from __future__ import annotations

import asyncio
import io
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from engine.errors import ConfigError
from engine.request import SpeculationStats
from server.batches.lines import BatchLine, BatchLineError
from server.batches.output import LineAnswer
from server.offline.flow import Bounds, Flow
from server.offline.line_file import ReaderGoneError
from server.offline.openai_recipe import OpenAIRecipe
from server.offline.outcome import Job
from server.offline.progress import EngineCount, Progress
from server.offline.progress_display import shown
from server.offline.records import CSV, JSONL, BrokenRecordError, Record, Source
from server.offline.run import Ask, resuming
from server.offline.side_thread import SideThread
from tests.server.harness import run

GOOD = LineAnswer(200, "r", b'{"usage": {"prompt_tokens": 2, "completion_tokens": 3}}')


@dataclass(slots=True)
class Rows:
    """Takes rows while its gate is open."""

    gate: threading.Event = field(default_factory=threading.Event)
    rows: list[bytes] = field(default_factory=list)
    error: Exception | None = None

    def write(self, line: bytes) -> None:
        self.gate.wait(30)
        if self.error is not None:
            raise self.error
        self.rows.append(line)

    def close(self) -> None:
        pass


@dataclass(slots=True)
class Jobs:
    """An endless source that counts what is taken of it."""

    num_taken: int = 0
    end: int = 10**9
    error: Exception | None = None

    def __iter__(self) -> Iterator[Job | None]:
        while self.num_taken < self.end:
            self.num_taken += 1
            number = self.num_taken
            yield Job(Record(number, b""), BatchLine(number, f"r{number}", "POST", "/", {}))
        if self.error is not None:
            raise self.error


async def good(_line: BatchLine) -> LineAnswer:
    return GOOD


def new_progress() -> Progress:
    progress = Progress(EngineCount(SpeculationStats))
    progress.start()
    return progress


def flow_of(
    jobs: Jobs, rows: Rows, bounds: Bounds, ask: Ask = good, progress: Progress | None = None
) -> Flow:
    recipe = OpenAIRecipe(1000)
    return Flow(iter(jobs), recipe, ask, rows, bounds, progress or new_progress())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("is_ordered", [False, True])
def test_no_more_is_read_than_there_is_room_for(is_ordered: bool) -> None:
    async def scenario() -> None:
        jobs, rows, bounds = Jobs(), Rows(), Bounds(3, is_ordered)
        flow = flow_of(jobs, rows, bounds)
        running = asyncio.create_task(flow.run())
        await until(lambda: jobs.num_taken == bounds.num_held)
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert jobs.num_taken == bounds.num_held, "nobody takes the rows"
        rows.gate.set()
        await until(lambda: len(rows.rows) > 50)
        assert jobs.num_taken <= len(rows.rows) + bounds.num_held + 1
        flow.stop()
        await running

    run(scenario)


def test_no_more_are_asked_at_once_than_allowed() -> None:
    async def scenario() -> None:
        now, most = 0, 0

        async def ask(_line: BatchLine) -> LineAnswer:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.002)
            now -= 1
            return GOOD

        rows = Rows()
        rows.gate.set()
        await flow_of(Jobs(end=40), rows, Bounds(4, True), ask).run()
        assert len(rows.rows) == 40
        assert most == 4

    run(scenario)


def test_one_slow_answer_holds_back_a_bounded_number_in_order() -> None:
    async def scenario() -> None:
        slow = asyncio.Event()

        async def ask(line: BatchLine) -> LineAnswer:
            if line.number == 1:
                await slow.wait()
            return GOOD

        jobs, rows, bounds = Jobs(end=100), Rows(), Bounds(4, True)
        rows.gate.set()
        running = asyncio.create_task(flow_of(jobs, rows, bounds, ask).run())
        await until(lambda: jobs.num_taken == bounds.num_held)
        assert not rows.rows
        slow.set()
        await running
        assert [row.split(b'"custom_id":"r')[1].split(b'"')[0] for row in rows.rows] == [
            str(i).encode() for i in range(1, 101)
        ]

    run(scenario)


def test_stopping_gives_up_what_runs_and_writes_what_is_done() -> None:
    async def scenario() -> None:
        given_up = []

        async def ask(line: BatchLine) -> LineAnswer:
            if line.number <= 2:
                return GOOD
            try:
                await asyncio.Event().wait()
            finally:
                given_up.append(line.number)
            return GOOD

        jobs, rows, progress = Jobs(), Rows(), new_progress()
        flow = flow_of(jobs, rows, Bounds(5), ask, progress)
        running = asyncio.create_task(flow.run())
        await until(lambda: jobs.num_taken == 5)
        flow.stop()
        await asyncio.sleep(0.01)
        rows.gate.set()
        await running
        assert len(rows.rows) == 2
        assert sorted(given_up) == [3, 4, 5]
        assert (progress.num_done, progress.num_tokens) == (2, 6)

    run(scenario)


def test_a_consumer_that_takes_nothing_does_not_keep_it_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.offline.flow._LAST_WRITES_S", 0.01)

    async def scenario() -> None:
        rows = Rows()
        flow = flow_of(Jobs(), rows, Bounds(2))
        running = asyncio.create_task(flow.run())
        await asyncio.sleep(0.01)
        flow.stop()
        await running
        assert not rows.rows
        rows.gate.set()

    run(scenario)


def test_a_reader_that_is_gone_is_raised() -> None:
    async def scenario() -> None:
        rows = Rows(error=ReaderGoneError())
        rows.gate.set()
        with pytest.raises(ReaderGoneError):
            await flow_of(Jobs(), rows, Bounds(2)).run()

    run(scenario)


def test_a_source_that_fails_is_told_after_its_answers() -> None:
    async def scenario() -> None:
        rows = Rows()
        rows.gate.set()
        with pytest.raises(ConfigError, match="broken"):
            await flow_of(Jobs(end=3, error=ConfigError("broken")), rows, Bounds(9)).run()
        assert len(rows.rows) == 3

    run(scenario)


def test_a_call_that_blocks_does_not_block_the_loop() -> None:
    async def scenario() -> None:
        thread, gate = SideThread("test"), threading.Event()
        blocked = asyncio.create_task(thread.call(lambda: gate.wait(30)))
        behind = asyncio.create_task(thread.call(lambda: 7))
        await asyncio.sleep(0.01)
        assert not blocked.done()
        blocked.cancel()
        gate.set()
        assert await behind == 7
        with pytest.raises(ZeroDivisionError):
            await thread.call(lambda: 1 // 0)
        thread.close()

    run(scenario)


def records(kind: str, data: bytes, path: Path, limit: int = 100) -> list[Record]:
    path.write_bytes(data)
    return list(Source(str(path), kind, limit).read())


def test_lines_are_told_apart(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf{}\r\n\n  \n{\xff}\n" + b"x" * 101 + b"\n" + b"y" * 99 + b"\nlast"
    found = {r.number: r.content for r in records(JSONL, data, tmp_path / "a")}
    assert isinstance(found.pop(5), BrokenRecordError)
    assert found == {1: b"{}", 4: b"{\xff}", 6: b"y" * 99, 7: b"last"}


def test_a_line_longer_than_a_chunk_is_whole_or_passed_over(tmp_path: Path) -> None:
    data = b"x" * 200_000 + b"\n" + b"y" * 300_000 + b"\nz"
    found = [r.content for r in records(JSONL, data, tmp_path / "a", limit=250_000)]
    assert found[0] == b"x" * 200_000
    assert isinstance(found[1], BrokenRecordError)
    assert found[2] == b"z"
    endless = [r.content for r in records(JSONL, b"w" * 300_000, tmp_path / "a", limit=1000)]
    assert [type(content) for content in endless] == [BrokenRecordError]


def test_a_line_is_there_as_soon_as_it_is_written() -> None:
    taking, giving = os.pipe()
    source = Source(f"/dev/fd/{taking}", JSONL, 100)
    found = source.read()
    for word in (b"one", b"two"):
        os.write(giving, word + b"\nbegun ")
        assert next(found).content == (word if word == b"one" else b"begun two")
    os.close(giving)
    os.close(taking)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [(b"a,a\n1,2\n", "names a column twice"), (b"a\n\xff\n", "line 2 is not UTF-8")],
)
def test_csv_that_cannot_be_read_is_refused(tmp_path: Path, data: bytes, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        records(CSV, data, tmp_path / "a")


def test_records_are_counted_where_they_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b'a\n"x\ny"\n\nz')
    assert Source(str(path), CSV, 100).count() == 2
    assert Source(str(path), JSONL, 100).count() == 4
    assert Source("/dev/null", JSONL, 100).count() is None


def test_the_engine_is_counted_over_its_restarts() -> None:
    stats = [SpeculationStats(num_target_passes=4, num_output_tokens=8)]
    count = EngineCount(lambda: stats[0])
    count.sample()
    stats[0] = SpeculationStats(num_target_passes=1, num_output_tokens=3)
    count.sample()
    count.sample()
    assert (count.num_passes, count.num_tokens, count.tokens_per_pass) == (5, 11, 2.2)


def test_figures_tell_what_is_left_and_what_it_costs() -> None:
    stats = SpeculationStats(num_target_passes=2, num_output_tokens=4)
    progress = Progress(EngineCount(lambda: stats), price_per_hour=36.0, total=10)
    assert "left" not in progress.figures()
    progress.start()
    progress.skip(4)
    job = Job(Record(1, b""), BatchLineError("no", number=1, param=None, code="x"))
    assert isinstance(job.asked, BatchLineError)
    progress.note(OpenAIRecipe(10).failed(job, job.asked))
    figures = progress.figures()
    assert figures["done"] == "5/10"
    assert figures["failed"] == "1"
    assert figures["tokens_per_pass"] == "2.00"
    assert {"left", "cost", "tokens_per_s"} <= figures.keys()


async def slow() -> None:
    await asyncio.sleep(0.2)


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.offline.progress_display._BAR_S", 0.01)
    printed = io.StringIO()
    console = Console(file=printed, force_terminal=True, width=100)
    progress = Progress(EngineCount(SpeculationStats), total=8, num_done=3, price_per_hour=1.0)
    progress.start()
    asyncio.run(shown(slow(), progress, console))
    assert "3/8" in printed.getvalue()
    assert "tokens/s" in printed.getvalue()
    assert "cost 0.00" in printed.getvalue()


def test_elsewhere_the_log_tells(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("server.offline.progress_display._LOG_S", 0.01)
    with caplog.at_level("INFO"):
        asyncio.run(shown(slow(), Progress(EngineCount(SpeculationStats), num_done=3), None))
    assert "batch_progress done=3 tokens_per_s=0.0" in caplog.messages


def test_the_command_that_goes_on_does_not_begin_anew() -> None:
    command = ("outdraft", "batch", "-i", "a b", "--overwr", "--no-resume", "--ordered", "-o", "x")
    assert resuming(command) == "outdraft batch -i 'a b' --ordered -o x"
