"""`outdraft batch` as users run it: a real process, a tiny model, pipes, signals and limits."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.server.batch_command import chat_line, read_lines, write_lines
from tests.server.test_end_to_end import make_model
from tests.server_process import PYTHON, ROOT, START_S, wait_for

TEMPLATE = ("--template", "{{ text }}", "--completion", "--max-tokens", "3", "--ignore-eos")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), num_layers=1)


@contextmanager
def outdraft(
    model: Path, *words: str, log: Path, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `outdraft batch` until the block ends."""
    command = [PYTHON, "-m", "server.cli.main", "batch", str(model), *words]
    command += ["--served-model-name", "tiny", "--speculation", "off", "--threads", "1"]
    command += ["--kv-cache-memory", "16MiB"]
    with log.open("ab") as sink:
        process = subprocess.Popen(command, cwd=ROOT, stderr=sink, **options)
    try:
        yield process
    finally:
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.wait(60)


def ended(process: subprocess.Popen[bytes]) -> int:
    return process.wait(START_S)


def long_lines(path: Path, count: int, tokens: int = 200) -> Path:
    return write_lines(
        path, [chat_line(f"r{i}", max_tokens=tokens, ignore_eos=True) for i in range(count)]
    )


def num_rows(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_goes_on_after_its_process_was_ended(model: Path, tmp_path: Path, number: int) -> None:
    source, output = long_lines(tmp_path / "in.jsonl", 60), tmp_path / "out.jsonl"
    log = tmp_path / "log"
    words = ("-i", str(source), "-o", str(output), "--max-in-flight", "4")
    with outdraft(model, *words, log=log) as process:
        wait_for(lambda: num_rows(output) >= 3, START_S, "no rows")
        engines = psutil.Process(process.pid).children()
        process.send_signal(number)
        status = ended(process)
    psutil.wait_procs(engines, timeout=30)
    assert not [engine for engine in engines if engine.is_running()]
    if number == signal.SIGKILL:
        # As if it had been in the middle of a row.
        with output.open("ab") as file:
            file.write(b'{"id": "batch_req_1", "custom_id": "r5')
    else:
        assert status == 130
        assert "To go on: outdraft batch" in log.read_text()
    kept = output.read_bytes().splitlines(keepends=True)
    kept = [line for line in kept if line.endswith(b"\n")]
    assert len(kept) < 60
    with outdraft(model, *words, log=log) as process:
        assert ended(process) == 0
    assert output.read_bytes().splitlines(keepends=True)[: len(kept)] == kept
    assert sorted(row["custom_id"] for row in read_lines(output)) == sorted(
        f"r{i}" for i in range(60)
    )


def test_each_answer_leaves_as_soon_as_it_is_done(model: Path, tmp_path: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    words = ("-i", "-", "-o", "-", *TEMPLATE)
    with outdraft(model, *words, log=tmp_path / "log", **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for name in ("first", "second"):
            # Written only once the answer to the one before has come: nothing waits for more.
            process.stdin.write(json.dumps({"id": name, "text": "abc"}).encode() + b"\n")
            process.stdin.flush()
            row = json.loads(process.stdout.readline())
            assert (row["id"], row["output_info"]["finish_reason"]) == (name, "length")
        process.stdin.close()
        assert process.stdout.read() == b""
        assert ended(process) == 0


def test_a_consumer_that_does_not_read_holds_up_the_producer(model: Path, tmp_path: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    words = ("-i", "-", "-o", "-", *TEMPLATE, "--ordered", "--max-in-flight", "4")
    with outdraft(model, *words, log=tmp_path / "log", **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b'{"text": "abc"}\n')
        process.stdin.flush()
        assert process.stdout.readline(), "it runs"
        record = json.dumps({"text": "abc", "filling": "f" * 3000}).encode() + b"\n"
        fd, rest = process.stdin.fileno(), record * 200
        os.set_blocking(fd, False)
        sizes = []

        def is_held_up() -> bool:
            nonlocal rest
            with suppress(BlockingIOError):
                rest = rest[os.write(fd, rest) :]
            sizes.append(len(rest))
            return not rest or sizes[-40:].count(len(rest)) == 40

        wait_for(is_held_up, START_S, "never held up")
        # Two pipes of 64 KiB, one chunk, and 16 records that are held.
        assert 200 * len(record) - len(rest) < 4 * 2**16 + 20 * len(record)
        os.set_blocking(fd, True)
        rows = tmp_path / "rows"
        with rows.open("wb") as file, subprocess.Popen(["cat"], stdin=process.stdout, stdout=file):
            process.stdin.write(rest)
            process.stdin.close()
            assert ended(process) == 0
        assert [row["id"] for row in read_lines(rows)] == list(range(2, 202))


def test_a_consumer_that_goes_ends_it_quietly(model: Path, tmp_path: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    log = tmp_path / "log"
    with outdraft(model, "-i", "-", "-o", "-", *TEMPLATE, log=log, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b'{"text": "abc"}\n')
        process.stdin.flush()
        process.stdout.readline()
        process.stdout.close()
        # The producer goes on, and does not close its end.
        process.stdin.write(b'{"text": "abc"}\n' * 10)
        process.stdin.flush()
        assert ended(process) == 0
    assert "Traceback" not in log.read_text()
    assert "Error" not in log.read_text()


def test_a_producer_that_is_silent_does_not_keep_it_from_ending(
    model: Path, tmp_path: Path
) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with outdraft(model, "-i", "-", "-o", "-", *TEMPLATE, log=tmp_path / "log", **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b'{"text": "abc"}\n')
        process.stdin.flush()
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert ended(process) == 130
        assert process.stdout.read() == b""


def test_a_device_without_room_is_told(model: Path, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    source, log = long_lines(tmp_path / "in.jsonl", 2, 4), tmp_path / "log"
    with outdraft(model, "-i", str(source), "-o", "/dev/full", log=log) as process:
        assert ended(process) == 2
    assert "cannot write /dev/full: No space left on device" in " ".join(log.read_text().split())


def test_a_file_that_may_not_grow_keeps_whole_rows(model: Path, tmp_path: Path) -> None:
    source, output = long_lines(tmp_path / "in.jsonl", 20, 4), tmp_path / "out.jsonl"
    log = tmp_path / "log"
    words = ("-i", str(source), "-o", str(output), "--max-in-flight", "2")
    with outdraft(model, *words, log=log) as process:
        wait_for(output.exists, START_S, "no output")
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (3000, 3000))
        assert ended(process) == 1
    assert "File too large" in log.read_text()
    assert output.read_bytes().endswith(b"\n")
    done = {row["custom_id"] for row in read_lines(output)}
    assert 0 < len(done) < 20
    with outdraft(model, *words, log=log) as process:
        assert ended(process) == 0
    assert len(read_lines(output)) == 20
