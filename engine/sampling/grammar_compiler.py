"""Compiles grammars on threads of its own, once each, and keeps those that were used lately."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psutil

from engine.errors import InvalidRequestError
from engine.sampling.grammar_library import (
    describe,
    llguidance,
    on_deep_stack,
    parser_limits,
)
from engine.sampling.grammar_stretch import FreeStretch
from engine.sampling.grammar_vocabulary import GrammarVocabulary, TokenizerSource
from engine.structured_output import REFUSED, WHITESPACE_PATTERN, StructuredOutput

MAX_COMPILED_GRAMMARS = 64
# Most take next to nothing; one may take a hundred MiB.
MAX_COMPILED_BYTES = 256 * 2**20
_NUM_THREADS = 2
_OPTIONS = "x-guidance"


class CompiledGrammar:
    """A grammar ready to be followed by many requests.

    Args:
        vocabulary: the model's tokens.
        shape: what to compile.

    Raises:
        InvalidRequestError: the grammar does not compile, or allows no answer at all.

    Attributes:
        vocabulary: the model's tokens.
        stretch: the free text in front of the grammar, if there is one.
        num_bytes: by which the process grew while it was compiled.
    """

    def __init__(self, vocabulary: GrammarVocabulary, shape: StructuredOutput) -> None:
        self.vocabulary = vocabulary
        self.num_bytes = 0
        self._text = _grammar_text(shape)
        self._base = on_deep_stack(self._compile)
        self.stretch: FreeStretch | None = None
        if shape.free is not None:
            if not shape.free.until:
                raise _refused("the text that ends the free stretch is empty")
            self.stretch = FreeStretch(shape.free, vocabulary, self.can_begin)

    def matcher(self) -> Any:
        """Give a matcher at the grammar's beginning, an `LLMatcher`.

        Matchers of one grammar share its automata, which grow as they are used; when they reach
        their limit, all of these matchers fail.
        """
        return self._base.deep_copy()

    def fresh_matcher(self) -> Any:
        """Give a matcher with automata of its own, and new ones to all who come later."""
        self._base = on_deep_stack(self._compile)
        return on_deep_stack(self._compile)

    def can_begin(self, text: bytes) -> bool:
        """Whether there are answers that begin with this text, leading white space dropped."""
        token_ids = self.vocabulary.tokenize(text.lstrip())
        if not token_ids:
            return True
        begins = takes_all(self.matcher(), token_ids)
        return bool(takes_all(self.fresh_matcher(), token_ids) if begins is None else begins)

    def _compile(self) -> Any:
        matcher = llguidance().LLMatcher(
            self.vocabulary.ll, self._text, log_level=0, limits=parser_limits()
        )
        if not matcher.is_error():
            # The first mask tells whether there is any answer, and warms the lexer for everyone.
            matcher.compute_bitmask()
        if matcher.is_error():
            raise _refused(describe(matcher.get_error()))
        probe = matcher.deep_copy()
        first = self._any_token(probe)
        if first is not None and probe.consume_token(first) and not probe.rollback(1):
            raise _refused(describe(probe.get_error()))
        return matcher

    def _any_token(self, matcher: Any) -> int | None:
        allowed = int.from_bytes(matcher.compute_bitmask(), "little")
        for token_id in self.vocabulary.eos_token_ids:
            allowed &= ~(1 << token_id)
        allowed &= (1 << self.vocabulary.vocab_size) - 1
        return (allowed & -allowed).bit_length() - 1 if allowed else None


class GrammarCompiler:
    """Compiles in the background.

    Args:
        source: gives the model's tokenizer, serialised; called once, when first needed.
        vocab_size: width of the logits.
        eos_token_ids: tokens that end an answer, the preferred one first.

    Attributes:
        seconds: spent compiling, tokenizer included.
    """

    def __init__(
        self, source: TokenizerSource, vocab_size: int, eos_token_ids: tuple[int, ...]
    ) -> None:
        self._make_vocabulary: Callable[[], GrammarVocabulary] = lambda: GrammarVocabulary(
            source(), vocab_size, eos_token_ids
        )
        self._vocabulary: GrammarVocabulary | None = None
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._compiled: OrderedDict[StructuredOutput, Future[CompiledGrammar]] = OrderedDict()
        self.seconds = 0.0

    def compile(self, shape: StructuredOutput) -> Future[CompiledGrammar]:
        """Start compiling, or give what is compiled already; failures come with the result."""
        known = self._compiled.get(shape)
        if known is not None:
            self._compiled.move_to_end(shape)
            return known
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_NUM_THREADS, "grammar-compiler")
        future = self._compiled[shape] = self._pool.submit(self._compile, shape)
        while len(self._compiled) > MAX_COMPILED_GRAMMARS or (
            len(self._compiled) > 1 and self._num_bytes() > MAX_COMPILED_BYTES
        ):
            self._compiled.popitem(last=False)
        return future

    def _num_bytes(self) -> int:
        done = [future for future in self._compiled.values() if future.done()]
        return sum(future.result().num_bytes for future in done if future.exception() is None)

    def _compile(self, shape: StructuredOutput) -> CompiledGrammar:
        started = time.perf_counter()
        try:
            with self._lock:
                if self._vocabulary is None:
                    self._vocabulary = self._make_vocabulary()
            before = _resident_bytes()
            compiled = CompiledGrammar(self._vocabulary, shape)
            compiled.num_bytes = max(0, _resident_bytes() - before)
            return compiled
        finally:
            self.seconds += time.perf_counter() - started


def _resident_bytes() -> int:
    resident: int = psutil.Process().memory_info().rss
    return resident


def takes_all(matcher: Any, token_ids: list[int]) -> bool | None:
    """Give a matcher tokens; it takes all of them, or none.

    Returns:
        None where the matcher has failed, and so can say nothing.
    """
    if matcher.is_stopped():
        return None if matcher.is_error() else False
    count = matcher.try_consume_tokens(token_ids)
    if count == len(token_ids):
        return True
    # A matcher whose automata are full refuses every token, and only says why when it is asked for
    # a mask.
    matcher.compute_bitmask()
    if matcher.is_error() or not matcher.rollback(count):
        return None
    return False


def _grammar_text(shape: StructuredOutput) -> str:
    try:
        text = _with_bounded_space(shape.text) if shape.kind == "json_schema" else shape.text
        return str(llguidance().grammar_from(shape.kind, text))
    except ValueError as error:
        raise _refused(describe(str(error))) from error


def _with_bounded_space(schema_text: str) -> str:
    """Bound the space between the parts of JSON where the schema does not say how much."""
    schema = json.loads(schema_text)
    if not isinstance(schema, dict) or _OPTIONS in schema:
        return schema_text
    return json.dumps(schema | {_OPTIONS: {"whitespace_pattern": WHITESPACE_PATTERN}})


def _refused(reason: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{REFUSED}{reason}.", param="structured_output", code="invalid_value"
    )
