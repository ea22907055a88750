"""`outdraft serve` as users run it: a real process, a tiny real model, the `openai` SDK."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.byte_tokenizer import byte_tokenizer
from tests.server_process import START_S, running_server, wait_for

MODEL = "tiny"


@dataclass(slots=True)
class Server:
    """A running server and the SDK that talks to it."""

    process: psutil.Process
    url: str
    client: openai.OpenAI

    @property
    def engine(self) -> psutil.Process:
        (child,) = [
            child
            for child in self.process.children()
            if any("engine_process" in word for word in child.cmdline())
        ]
        return child

    def get(self, path: str) -> tuple[int, str]:
        response = self.client.with_options(max_retries=0)._client.get(self.url + path)
        return response.status_code, response.text

    def metric(self, name: str) -> float:
        _, text = self.get("/metrics")
        found = re.search(rf"^outdraft:{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE)
        assert found is not None, f"{name} is not among the metrics"
        return float(found[1])


def make_model(folder: Path, *, num_layers: int) -> Path:
    """Save a random Llama over bytes, with its tokenizer and chat template."""
    torch.manual_seed(num_layers)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=8192,
        bos_token_id=256,
        eos_token_id=256,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    target = make_model(tmp_path_factory.mktemp("target"), num_layers=2)
    draft = make_model(tmp_path_factory.mktemp("draft"), num_layers=1)
    words = [str(target), "--draft", str(draft), "--served-model-name", MODEL]
    words += ["--threads", "1", "--kv-cache-memory", "16MiB", "--speculation", "4"]
    with (
        running_server(words, tmp_path_factory.mktemp("log") / "server.log") as running,
        openai.OpenAI(base_url=running.api, api_key="none", max_retries=0, timeout=60) as client,
    ):
        yield Server(psutil.Process(running.pid), running.url, client)


USER: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


def test_chat_streams_the_text_of_the_whole_answer(server: Server) -> None:
    create = server.client.chat.completions.create
    whole = create(model=MODEL, messages=USER, max_tokens=40, seed=5)
    stream = create(
        model=MODEL,
        messages=USER,
        max_tokens=40,
        seed=5,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.usage is not None for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert whole.usage.prompt_tokens == len("<user>hello<assistant>")


def test_seeded_text_is_the_same_alone_and_in_a_crowd(server: Server) -> None:
    def ask(seed: int) -> str:
        answer = server.client.completions.create(
            model=MODEL, prompt="once", max_tokens=30, seed=seed, temperature=1.0
        )
        return answer.choices[0].text

    alone = [ask(seed) for seed in range(4)]
    crowd: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda s=seed: crowd.setdefault(s, ask(s))) for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [crowd[seed] for seed in range(4)] == alone
    assert len(set(alone)) == 4


def test_drafts_are_verified_and_counted(server: Server) -> None:
    before = server.metric("spec_decode_num_draft_tokens_total")
    server.client.completions.create(model=MODEL, prompt="once", max_tokens=20, temperature=0)
    assert server.metric("spec_decode_num_draft_tokens_total") > before


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_sdk_reads_streams_that_tell_where_tokens_come_from(
    server: Server, temperature: float
) -> None:
    asked = {"model": MODEL, "max_tokens": 40, "seed": 5, "temperature": temperature}
    report = {"stream": True, "extra_body": {"speculation": {"report": True}}}
    chat = server.client.chat.completions.create
    plain = list(chat(**asked, messages=USER, stream=True))
    told = list(chat(**asked, messages=USER, **report))
    chat_text = "".join(c.choices[0].delta.content or "" for c in plain)
    assert "".join(c.choices[0].delta.content or "" for c in told) == chat_text
    assert not any(hasattr(chunk, "provenance") for chunk in plain)
    completed = list(server.client.completions.create(**asked, prompt="once", **report))
    text = "".join(chunk.choices[0].text for chunk in completed)
    for chunks, expected in ((told, chat_text), (completed, text)):
        passes = [p for c in chunks if hasattr(c, "provenance") for p in c.provenance["passes"]]
        tokens = [token for one in passes for token in one["tokens"]]
        assert "".join(token["text"] for token in tokens) == expected
        counts = chunks[-1].metrics["speculative_decoding"]
        assert len(passes) == counts["num_target_passes"]
        assert sum(one["proposed"] for one in passes) == counts["num_draft_tokens"] > 0
        assert sum(one["accepted"] for one in passes) == counts["num_accepted_tokens"]
        assert {token["drafter"] for token in tokens} <= {"draft_model", None}


def test_stop_texts_end_the_answer(server: Server) -> None:
    letter = byte_tokenizer().encode("a")[0]
    answer = server.client.completions.create(
        model=MODEL,
        prompt="x",
        max_tokens=50,
        stop=["aaa"],
        logit_bias={str(letter): 100},
        temperature=0,
        echo=True,
    )
    assert answer.choices[0].text == "x"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_choices_and_logprobs(server: Server) -> None:
    answer = server.client.chat.completions.create(
        model=MODEL, messages=USER, n=3, max_tokens=6, seed=1, logprobs=True, top_logprobs=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage is not None
    num_tokens = 0
    for choice in answer.choices:
        assert choice.logprobs is not None
        content = choice.logprobs.content
        assert content is not None
        num_tokens += len(content)
        assert all(len(token.top_logprobs) == 2 for token in content)
        assert all(token.logprob <= token.top_logprobs[0].logprob <= 0 for token in content)
    assert answer.usage.completion_tokens == num_tokens


def test_sdk_raises_the_right_classes(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length") as too_long:
        server.client.completions.create(model=MODEL, prompt="x", max_tokens=10**6)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        server.client.completions.create(model="other", prompt="x")
    with pytest.raises(openai.BadRequestError, match="tools"):
        server.client.chat.completions.create(
            model=MODEL,
            messages=USER,
            tools=[{"type": "function", "function": {"name": "f"}}],
        )


def test_shared_prefix_is_found_in_the_cache(server: Server) -> None:
    prompt = "a long beginning that two prompts share, and then "
    for end in ("one", "two"):
        answer = server.client.completions.create(model=MODEL, prompt=prompt + end, max_tokens=2)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == len(prompt) // 16 * 16


@pytest.mark.parametrize("stream", [True, False])
def test_disconnect_frees_the_blocks(server: Server, stream: bool) -> None:
    if stream:
        answer = server.client.completions.create(
            model=MODEL, prompt="x", max_tokens=8000, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(answer))
        wait_for(lambda: server.metric("num_requests_running") == 1, 5, "never ran")
        answer.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            server.client.with_options(timeout=0.5).completions.create(
                model=MODEL, prompt="x", max_tokens=8000, extra_body={"ignore_eos": True}
            )
    wait_for(lambda: server.metric("num_requests_running") == 0, 3, "still running")
    assert server.metric("kv_cache_usage_perc") == 0


def test_terminal_chat_answers_what_is_piped_in(server: Server, root: Path) -> None:
    words = [sys.executable, "-m", "server.cli.main", "chat", "--url", server.url]
    done = subprocess.run(
        [*words, "--max-tokens", "5", "--seed", "1"],
        cwd=root,
        input="hello\n/reset\nagain\n/exit\nnever\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert server.metric("num_requests_running") == 0
    assert done.stdout


def test_idle_server_sleeps(server: Server) -> None:
    before = server.engine.cpu_times()
    time.sleep(1)
    after = server.engine.cpu_times()
    assert after.user + after.system - before.user - before.system <= 0.02


def test_killed_engine_ends_streams_and_is_started_anew(server: Server) -> None:
    streams = [
        server.client.completions.create(
            model=MODEL, prompt="x", max_tokens=8000, stream=True, extra_body={"ignore_eos": True}
        )
        for _ in range(3)
    ]
    for stream in streams:
        next(iter(stream))
    os.kill(server.engine.pid, signal.SIGKILL)
    killed = time.monotonic()
    for stream in streams:
        with pytest.raises(openai.APIError, match="gone"):
            list(stream)
    assert time.monotonic() - killed < 2
    assert [server.get(path)[0] for path in ("/health", "/ready")] == [503, 503]
    asked = time.monotonic()
    with pytest.raises(openai.InternalServerError) as refused:
        server.client.completions.create(model=MODEL, prompt="x")
    assert refused.value.status_code == 503
    assert refused.value.code == "engine_restarting"
    assert int(refused.value.response.headers["retry-after"]) > 0
    assert time.monotonic() - asked < 1
    wait_for(lambda: server.get("/ready")[0] == 200, START_S, "never ready again")
    answer = server.client.completions.create(model=MODEL, prompt="x", max_tokens=4)
    assert answer.usage is not None
    assert server.metric("engine_restarts_total") == 1
    assert server.metric("num_requests_running") == 0


def test_a_model_that_cannot_be_loaded_ends_the_server_with_one_line(
    root: Path, tmp_path: Path
) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5", "is_encoder_decoder": true}')
    done = subprocess.run(
        [sys.executable, "-m", "server.cli.main", "serve", str(tmp_path), "--port", "0"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=START_S,
    )
    assert done.returncode == 1
    assert "outdraft: ModelNotSupportedError" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
