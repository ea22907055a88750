"""Where tokens come from, in streams: the schema, the counts, and texts that join to the answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import TypeAdapter

from engine.config import EngineConfig, ModelConfig
from engine.provenance import PassProvenance
from engine.request import NGRAM, FinishReason, Request, RequestDelta
from engine.tokenization import IncrementalDetokenizer, TokenBytes
from engine.training.tokenizer import CHAT_TEMPLATE as HERMES_TEMPLATE
from server.protocol.provenance import Provenance
from server.provenance import UntoldPasses
from tests.byte_tokenizer import byte_tokenizer
from tests.doubles import EOS, FakeCore
from tests.server.harness import Api, events, run, saying, saying_in_turn, serving
from tests.tiny_models import greedy

REPORT = {"stream": True, "speculation": {"report": True}}
SCHEMA = TypeAdapter(Provenance)
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
HERMES = HERMES_TEMPLATE + "{# <think> </think> #}"


def ids(text: bytes) -> list[int]:
    """Give the token of each byte."""
    tokens = TokenBytes(byte_tokenizer())
    known = {tokens.bytes_of(token_id): token_id for token_id in range(EOS)}
    return [known[bytes([byte])] for byte in text]


def told(stream: list[dict[str, Any]], index: int = 0) -> list[dict[str, Any]]:
    """Check what every chunk tells, and give the passes of a choice."""
    passes = []
    for chunk in stream:
        if "provenance" not in chunk:
            continue
        # What the schema does not know would be dropped.
        assert SCHEMA.validate_python(chunk["provenance"], strict=True) == chunk["provenance"]
        assert [choice["index"] for choice in chunk["choices"]] == [chunk["provenance"]["index"]]
        if chunk["provenance"]["index"] == index:
            passes += chunk["provenance"]["passes"]
    return passes


def text_of(passes: list[dict[str, Any]]) -> str:
    return "".join(token["text"] for one in passes for token in one["tokens"])


def check_counts(passes: list[dict[str, Any]], counts: dict[str, Any]) -> None:
    """Hold passes to what the answer's own report counts."""
    assert len(passes) == counts["num_target_passes"]
    assert sum(one["proposed"] for one in passes) == counts["num_draft_tokens"]
    assert sum(one["accepted"] for one in passes) == counts["num_accepted_tokens"]
    for one in passes:
        assert len(one["draft"]) == one["proposed"]
        origins = [token["origin"] for token in one["tokens"]]
        assert origins[: one["accepted"]] == ["draft"] * one["accepted"]
        assert set(origins[one["accepted"] :]) <= {"target"}


async def both(api: Api, **fields: Any) -> list[list[dict[str, Any]]]:
    """Give the streams of a chat and of a completion."""
    return [events(await ask(**{**REPORT, **fields})) for ask in (api.chat, api.complete)]


def test_texts_join_to_the_answer_and_counts_are_those_of_the_report() -> None:
    async def scenario() -> None:
        async with serving(saying("héllo wörld, häppy")) as api:
            for stream in await both(api, max_tokens=60, stream_options={"include_usage": True}):
                passes = told(stream)
                assert text_of(passes) == "héllo wörld, häppy"
                check_counts(passes, stream[-1]["metrics"]["speculative_decoding"])
                tokens = [token for one in passes for token in one["tokens"]]
                assert len(tokens) == stream[-1]["usage"]["completion_tokens"]
                assert tokens[-1]["id"] == EOS
                assert [token["cut"] for token in tokens] == [False] * (len(tokens) - 1) + [True]
                (h,) = ids(b"h")
                assert passes[0]["draft"] == [{"id": h, "text": "h", "survival": 0.75}]
                assert passes[0]["ms"] == 3.5
                first, second = passes[0]["tokens"]
                assert (first["survival"], second["survival"]) == (0.75, None)
                assert (second["text"], passes[1]["tokens"][0]["text"]) == ("", "é")
                assert (first["logprob"], first["rank"], first["top"]) == (None, None, [])

    run(scenario)


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"speculation": {"report": True}}])
def test_it_is_absent_where_it_was_not_asked_for(fields: dict[str, Any]) -> None:
    async def scenario() -> None:
        core = FakeCore(answer=saying("hello"))
        async with serving(core=core) as api:
            for response in (await api.chat(**fields), await api.complete(**fields)):
                assert "provenance" not in response.text

    run(scenario)


def test_log_probabilities_are_told_where_they_are_asked_for() -> None:
    async def scenario() -> None:
        async with serving(saying("hi")) as api:
            chat = events(await api.chat(**REPORT, logprobs=True, top_logprobs=2))
            completion = events(await api.complete(**REPORT, logprobs=2))
            (h,) = ids(b"h")
            for stream in (chat, completion):
                token = told(stream)[0]["tokens"][0]
                assert (token["logprob"], token["rank"]) == (-0.5, 1)
                assert token["top"] == [
                    {"id": h, "text": "h", "logprob": -0.5},
                    {"id": h + 1, "text": "i", "logprob": -1.5},
                ]

    run(scenario)


def test_choices_are_told_apart() -> None:
    async def scenario() -> None:
        async with serving(saying_in_turn(["one", "twenty"])) as api:
            for stream in await both(api, n=2):
                assert [text_of(told(stream, index)) for index in (0, 1)] == ["one", "twenty"]
                counts = stream[-1]["metrics"]["speculative_decoding"]["choices"]
                for index in (0, 1):
                    check_counts(told(stream, index), counts[index])

    run(scenario)


@pytest.mark.parametrize("is_included", [False, True])
def test_tokens_of_a_stop_text_are_told_once_it_is_one_and_marked(is_included: bool) -> None:
    async def scenario() -> None:
        async with serving(saying("abSTxy STOP more")) as api:
            fields = {"stop": ["STOP"], "include_stop_str_in_output": is_included}
            for stream in await both(api, **fields, stream_options={"include_usage": True}):
                passes = told(stream)
                text = "abSTxy STOP" if is_included else "abSTxy "
                assert text_of(passes) == text
                tokens = [token for one in passes for token in one["tokens"]]
                assert len(tokens) == stream[-1]["usage"]["completion_tokens"] == 11
                num_cut = 0 if is_included else len("STOP")
                assert [token["cut"] for token in tokens] == [False] * (11 - num_cut) + [
                    True
                ] * num_cut
                check_counts(passes, stream[-1]["metrics"]["speculative_decoding"])
                seen = ""
                for chunk in stream:
                    choice = (chunk["choices"] or [{}])[0]
                    seen += choice.get("text") or choice.get("delta", {}).get("content") or ""
                    for one in chunk.get("provenance", {}).get("passes", []):
                        for token in one["tokens"]:
                            assert seen.startswith(token["text"])
                            seen = seen[len(token["text"]) :]
                assert not seen

    run(scenario)


def test_raw_text_holds_thinking_and_calls() -> None:
    raw = '<think>why</think>yes<tool_call>{"name": "look", "arguments": {}}</tool_call>'

    async def scenario() -> None:
        settings = EngineConfig(model=ModelConfig(max_model_len=1000))
        async with serving(saying(raw), template=HERMES, engine_config=settings) as api:
            stream = events(await api.chat(**REPORT, tools=TOOLS, max_tokens=100))
            assert text_of(told(stream)) == raw
            deltas = [choice["delta"] for chunk in stream for choice in chunk["choices"]]
            assert any("tool_calls" in delta for delta in deltas)
            assert any("reasoning_content" in delta for delta in deltas)
            assert stream[-1]["choices"][0]["finish_reason"] == "tool_calls"

    run(scenario)


def test_an_echoed_prompt_has_no_origin() -> None:
    async def scenario() -> None:
        async with serving(saying("xyz")) as api:
            stream = events(await api.complete(**REPORT, echo=True))
            assert "provenance" not in stream[0]
            assert text_of(told(stream)) == "xyz"

    run(scenario)


def test_engine_hears_of_it_only_where_it_is_asked_for() -> None:
    seen: list[Request] = []

    async def scenario() -> None:
        core = FakeCore(EngineConfig(), saying("x"))
        take = core.add_request
        core.add_request = lambda request: (seen.append(request), take(request))[1]  # type: ignore[method-assign]
        async with serving(core=core) as api:
            await api.chat(stream=True)
            await api.chat(**REPORT)

    run(scenario)
    assert [request.wants_provenance for request in seen] == [False, True]


def tokens_told(deltas: list[RequestDelta], **params: Any) -> list[dict[str, Any]]:
    """Give the tokens that a choice tells of deltas."""
    tokens = TokenBytes(byte_tokenizer())
    text = IncrementalDetokenizer(tokens, greedy(99, **params), [1], has_offsets=True)
    untold = UntoldPasses(tokens, text)
    passes = []
    for delta in deltas:
        released = text.add(delta.new_token_ids, delta.finish_reason is not None)
        is_over = delta.finish_reason is not None or text.stopped_by is not None
        passes += untold.take(delta, released, is_over=is_over)
    return [dict(token) for one in passes for token in one["tokens"]]


def test_what_a_grammar_forced_is_told_with_who_drafted_it() -> None:
    delta = RequestDelta("r", ids(b"abc"), num_draft_tokens=2, num_accepted_tokens=2)
    delta.drafter, delta.finish_reason = NGRAM, FinishReason.LENGTH
    delta.provenance = PassProvenance(0.1, ids(b"ab"), None, (1, 2))
    found = [(token["origin"], token["drafter"]) for token in tokens_told([delta])]
    assert found == [("draft", NGRAM), ("grammar", NGRAM), ("grammar", None)]


def test_an_incomplete_character_belongs_to_the_last_token_of_the_answer() -> None:
    first = RequestDelta("r", ids(b"a"), provenance=PassProvenance(0.1, []))
    last = RequestDelta("r", ids(b"\xc3"), provenance=PassProvenance(0.1, []))
    last.finish_reason = FinishReason.LENGTH
    assert [token["text"] for token in tokens_told([first, last])] == ["a", "\ufffd"]


def test_schema_is_on_the_openapi_page() -> None:
    async def scenario() -> None:
        async with serving() as api:
            page = json.dumps((await api.http.get("/openapi.json")).json())
            assert '"Provenance"' in page

    run(scenario)
