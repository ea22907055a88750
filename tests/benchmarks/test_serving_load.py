"""Load is put on as asked: so many streams, arrivals of a seed or a trace, prompts of lengths."""

from __future__ import annotations

import asyncio
from pathlib import Path
from statistics import mean, pstdev

import pytest

from benchmarks.serving.arrivals import poisson_arrivals, read_trace
from benchmarks.serving.load import closed_loop, open_loop
from benchmarks.serving.prompt_sets import Ask, body_of, prompt_set
from engine.errors import ConfigError, InvalidRequestError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"


class FakeTime:
    """A clock that moves only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


def test_poisson_arrivals_are_reproducible_and_scale_with_the_rate() -> None:
    arrivals = poisson_arrivals(4.0, 4000, seed=1)
    assert arrivals == poisson_arrivals(4.0, 4000, seed=1)
    assert arrivals != poisson_arrivals(4.0, 4000, seed=2)
    assert poisson_arrivals(8.0, 4000, seed=1) == pytest.approx([a / 2 for a in arrivals])
    gaps = [after - before for before, after in zip(arrivals, arrivals[1:], strict=False)]
    assert arrivals[0] == 0.0
    assert mean(gaps) == pytest.approx(0.25, rel=0.1)
    # Of exponential gaps, mean and deviation are the same.
    assert pstdev(gaps) == pytest.approx(mean(gaps), rel=0.1)


def test_a_trace_is_read_with_its_lengths(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    lines = ["2023-11-16 18:15:46.6805900,374,44", "2023-11-16 18:15:50.9951690,396,109"]
    path.write_text(TRACE + "\r\n".join(lines))
    first, second = read_trace(path, None)
    assert (first.arrival_s, first.num_prompt_tokens, first.num_output_tokens) == (0.0, 374, 44)
    assert second.arrival_s == pytest.approx(4.314579)
    assert len(read_trace(path, 1)) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "needs the columns TIMESTAMP"),
        (TRACE, "and a request"),
        (TRACE + "yesterday,1,1\n", "line 2"),
        (TRACE + "2023-11-16 18:15:46.68,one,1\n", "line 2"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "trace.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_trace(tmp_path / "trace.csv", None)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(tmp_path / "none.csv", None)


def test_azures_trace_is_read_where_it_is() -> None:
    path = SHARED / "azure_llm_trace" / "AzureLLMInferenceTrace_conv.csv"
    if not path.is_file():
        pytest.skip("the Azure trace is not beside the checkout")
    trace = read_trace(path, None)
    assert len(trace) == 19366
    assert 3400 < trace[-1].arrival_s < 3600


def test_a_closed_loop_keeps_its_streams_busy() -> None:
    in_flight, most, done = 0, 0, []

    async def send(job: int, due_s: float | None) -> int:
        nonlocal in_flight, most
        assert due_s is None
        in_flight += 1
        most = max(most, in_flight)
        for _ in range(1 + job % 3):
            await asyncio.sleep(0)
        in_flight -= 1
        return job

    results = asyncio.run(closed_loop(range(10), send, concurrency=3, on_done=done.append))
    assert sorted(results) == list(range(10))
    assert (most, done) == (3, results)


def test_an_open_loop_sends_on_time_whatever_became_of_those_before() -> None:
    time, sent = FakeTime(), []

    async def send(job: int, due_s: float | None) -> int:
        sent.append((job, time.now, due_s))
        while len(sent) < 3:
            await asyncio.sleep(0)
        return job

    results = asyncio.run(
        open_loop(range(3), send, arrivals_s=[0.0, 1.0, 1.5], clock=time.clock, sleep=time.sleep)
    )
    assert sorted(results) == [0, 1, 2]
    assert [due for _, _, due in sent] == [100.0, 101.0, 101.5]
    assert sent[1][1] >= 101.0


def test_made_up_prompts_come_again_with_their_seed(tmp_path: Path) -> None:
    random = prompt_set("random:40:7", tmp_path, 3, seed=5)
    assert random == prompt_set("random:40:7", tmp_path, 3, seed=5)
    assert random != prompt_set("random:40:7", tmp_path, 3, seed=6)
    assert random.prompt_tokens == (40, 40, 40)
    assert {ask.num_output_tokens for ask in random.asks} == {7}
    shared = prompt_set("shared-prefix:2:50", tmp_path, 5, seed=0)
    beginnings = [str(ask.prompt).split()[:50] for ask in shared.asks]
    assert beginnings[0] == beginnings[2] == beginnings[4] != beginnings[1] == beginnings[3]
    assert len({str(ask.prompt) for ask in shared.asks}) == 5
    assert len(prompt_set("copy-heavy", tmp_path, 3, seed=0).asks) > 3


@pytest.mark.parametrize("name", ["spec-bench", "mt-bench", "humaneval", "gsm8k"])
def test_published_sets_are_read_where_they_are(name: str, tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip("shared data is not beside the checkout")
    found = prompt_set(name, SHARED, 16, seed=0)
    assert len({str(ask.prompt) for ask in found.asks}) == 16
    with pytest.raises(ConfigError, match=f"{name} needs"):
        prompt_set(name, tmp_path, 16, seed=0)


@pytest.mark.parametrize("form", ["randon:1:2", "random:1", "random:0:5", "shared-prefix:a:b"])
def test_what_is_no_prompt_set_is_refused(form: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="prompts: "):
        prompt_set(form, tmp_path, 4, seed=0)


def test_a_file_gives_texts_chats_and_token_ids_to_who_takes_them(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"messages": [{"role": "user", "content": "b"}]}\n')
    text, chat = prompt_set(str(path), tmp_path, 9, seed=0).asks
    assert body_of(text, "completions") == {"prompt": "a"}
    assert body_of(text, "chat") == {"messages": [{"role": "user", "content": "a"}]}
    assert body_of(chat, "chat") == {"messages": [{"role": "user", "content": "b"}]}
    assert body_of(Ask([1, 2]), "completions") == {"prompt": [1, 2]}
    with pytest.raises(ConfigError, match="completions take no messages"):
        body_of(chat, "completions")
    with pytest.raises(ConfigError, match="chats take no token ids"):
        body_of(Ask([1, 2]), "chat")
    path.write_text('{"prompt": ""}\n')
    with pytest.raises(InvalidRequestError, match="prompt is empty"):
        prompt_set(str(path), tmp_path, 9, seed=0)
