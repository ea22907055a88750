"""Grammars compile in the background, once each; what cannot be followed is refused."""

from __future__ import annotations

import builtins
import importlib
import threading
from typing import Any

import pytest

from engine.errors import InvalidRequestError
from engine.grammar_tokenizer import serialize
from engine.sampling import grammar_compiler
from engine.sampling.grammar_compiler import CompiledGrammar, GrammarCompiler
from engine.sampling.grammar_vocabulary import GrammarVocabulary
from engine.structured_output import FreeText, GrammarKind
from tests.byte_tokenizer import byte_tokenizer
from tests.engine.grammars import BYTE_EOS, BYTE_VOCAB, byte_vocabulary, matcher, shape

BYTES = byte_vocabulary()


def compiler() -> GrammarCompiler:
    return GrammarCompiler(lambda: serialize(byte_tokenizer), BYTE_VOCAB, (BYTE_EOS,))


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("json_schema", "{", "EOF|Expecting"),
        ("json_schema", '{"type": "strin"}', "Invalid type: strin"),
        ("json_schema", '{"uniqueItems": true}', "uniqueItems"),
        ("regex", "a{", "unclosed counted repetition"),
        ("choice", "not json", "Expecting value"),
        ("lark", "start: nowhere", "nowhere"),
        ("lark", 'start: text "x"\ntext[stop="y"]: /.*/', "rollback not supported"),
        ("lark", 'start: text "x"\ntext[max_tokens=3]: /.*/', "rollback not supported"),
    ],
)
def test_a_grammar_that_cannot_be_followed_is_refused(
    kind: GrammarKind, text: str, reason: str
) -> None:
    with pytest.raises(InvalidRequestError, match=f"structured_output: .*({reason})") as caught:
        CompiledGrammar(BYTES, shape(kind, text))
    assert caught.value.param == "structured_output"


def test_a_grammar_that_allows_nothing_is_refused() -> None:
    with pytest.raises(InvalidRequestError):
        CompiledGrammar(BYTES, shape("lark", "start: A\nA: /[a-z]+/ & /[0-9]+/"))


def test_a_stretch_needs_a_text_that_ends_it() -> None:
    with pytest.raises(InvalidRequestError, match="empty"):
        CompiledGrammar(BYTES, shape("regex", "a", FreeText(until="")))


def test_a_grammar_of_thousands_of_nested_rules_is_no_danger() -> None:
    rules = [f"r{i}: r{i + 1}" for i in range(3000)]
    CompiledGrammar(BYTES, shape("lark", "\n".join(["start: r0", *rules, 'r3000: "a"'])))


def test_space_in_json_is_bounded_unless_the_schema_says_how_much() -> None:
    newlines = BYTES.tokenize(b"{\n\n")
    bounded = matcher(BYTES, "json_schema", '{"type": "object"}')
    assert bounded.outlook(bounded.request.num_tokens, newlines).mask is None
    free = '{"type": "object", "x-guidance": {"whitespace_pattern": "\\n*"}}'
    unbounded = matcher(BYTES, "json_schema", free)
    assert unbounded.outlook(unbounded.request.num_tokens, newlines).mask is not None


def test_a_grammar_is_compiled_once() -> None:
    compiling = compiler()
    first, second = shape("regex", "[0-9]"), shape("regex", "[a-z]")
    assert compiling.compile(first).result() is compiling.compile(first).result()
    assert compiling.compile(first).result() is not compiling.compile(second).result()
    assert compiling.seconds > 0.0


def test_the_least_used_grammar_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_compiler, "MAX_COMPILED_GRAMMARS", 2)
    compiling = compiler()
    kept = compiling.compile(shape("regex", "a")).result()
    lost = compiling.compile(shape("regex", "b")).result()
    assert compiling.compile(shape("regex", "a")).result() is kept
    compiling.compile(shape("regex", "c")).result()
    assert compiling.compile(shape("regex", "a")).result() is kept
    assert compiling.compile(shape("regex", "b")).result() is not lost


def test_grammars_that_take_much_memory_are_forgotten_sooner() -> None:
    compiling = compiler()
    large = [f"a{{{count}}}" for count in range(60_000, 60_010)]
    grown = []
    for regex in large:
        grown.append(compiling.compile(shape("regex", regex)).result().num_bytes)
    compiling.compile(shape("regex", "a")).result()
    kept = sum(future.result().num_bytes for future in compiling._compiled.values())
    assert kept <= grammar_compiler.MAX_COMPILED_BYTES
    assert max(grown) > 2**20


def test_the_tokenizer_is_loaded_once_and_only_when_needed() -> None:
    loaded: list[int] = []

    def source() -> str:
        loaded.append(threading.get_ident())
        return serialize(byte_tokenizer)

    compiling = GrammarCompiler(source, BYTE_VOCAB, (BYTE_EOS,))
    assert not loaded
    futures = [compiling.compile(shape("regex", text)) for text in "abcd"]
    for future in futures:
        future.result()
    assert len(loaded) == 1
    assert loaded[0] != threading.get_ident()


def test_a_model_without_a_tokenizer_says_so() -> None:
    compiling = GrammarCompiler(lambda: serialize(lambda: None), BYTE_VOCAB, (BYTE_EOS,))
    with pytest.raises(InvalidRequestError, match="no tokenizer"):
        compiling.compile(shape("regex", "a")).result()


def test_a_tokenizer_that_llguidance_cannot_read_is_named() -> None:
    with pytest.raises(InvalidRequestError, match="cannot use this model's tokenizer"):
        GrammarVocabulary("{}", 10, (1,))


def test_a_missing_llguidance_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def missing(name: str, *arguments: Any) -> Any:
        if name == "llguidance":
            raise builtins.ImportError("No module named 'llguidance'")
        return real(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InvalidRequestError, match="pip install llguidance"):
        CompiledGrammar(BYTES, shape("regex", "a"))


@pytest.mark.parametrize("width", [BYTE_VOCAB - 20, BYTE_VOCAB, BYTE_VOCAB + 70])
def test_masks_are_as_wide_as_the_logits_or_wider(width: int) -> None:
    vocabulary = GrammarVocabulary(serialize(byte_tokenizer), width, (BYTE_EOS,))
    assert vocabulary.num_words * 32 >= width
    assert vocabulary.bytes_of(65) == byte_tokenizer().decode([65]).encode()
    assert vocabulary.bytes_of(BYTE_VOCAB + 5) == b""


def test_a_mask_without_any_token_of_the_model_allows_nothing() -> None:
    for width in (64, 70):
        vocabulary = GrammarVocabulary(serialize(byte_tokenizer), width, ())
        assert vocabulary.allows_nothing(vocabulary.mask_of([width, 200]))
        assert not vocabulary.allows_nothing(vocabulary.mask_of([width - 1, 200]))
        assert not vocabulary.allows_nothing(vocabulary.mask_without([0]))
