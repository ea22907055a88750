"""The prompts that servers are asked: published sets, made-up texts of given lengths, or a file.

A prompt is what goes on the wire, for chat or completions; nothing is turned into tokens here.
Made-up texts are counted in words; how many of them make a token, `door.py` asks the server.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.copy_texts import COPY_REQUESTS
from benchmarks.workloads import BUILT_IN
from engine.errors import ConfigError, InvalidRequestError
from engine.prompts import PromptLine, read_prompt_lines

CHAT, COMPLETIONS = "chat", "completions"
_SETS = {
    "spec-bench": Path("spec_bench/question.jsonl"),
    "mt-bench": Path("mt_bench/question.jsonl"),
    "humaneval": Path("humaneval/HumanEval.jsonl.gz"),
    "gsm8k": Path("gsm8k/test.jsonl"),
}
_KEYS: dict[str, Callable[[dict[str, Any]], str]] = {
    "spec-bench": lambda row: str(row["turns"][0]),
    "mt-bench": lambda row: str(row["turns"][0]),
    "humaneval": lambda row: str(row["prompt"]),
    "gsm8k": lambda row: str(row["question"]),
}
FORMS = ("chat", *_SETS, "copy-heavy", "shared-prefix[:GROUPS:WORDS]", "random:IN:OUT", "FILE")
_GROUPS, _PREFIX_WORDS, _OWN_WORDS = 4, 200, 20
_WORDS = (
    "a about after all and are as at be but by can come day do down find first for from get "
    "give go good had have he her him his how if in into is it know like long look made make "
    "man many may more my new no not now of on one only or other our out over people said see "
    "she so some take than that the their them then there they this time to two up use very "
    "was water way we well were what when which who will with word work would write year you "
    "your "
).split()


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to come.

    Attributes:
        prompt: a text, or token ids, or the messages of a chat.
        num_words: of a made-up prompt, whose length is set at the server; None = it is as it is.
        num_output_tokens: that it asks for; None = as the command line says.
    """

    prompt: str | list[Any]
    num_words: int | None = None
    num_output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts to ask, in turn.

    Attributes:
        name: as it was asked for.
        source: where they come from, in words.
        asks: the prompts.
        prompt_tokens: tokens wanted of each made-up prompt; empty where prompts are texts.
    """

    name: str
    source: str
    asks: list[Ask]
    prompt_tokens: tuple[int, ...] = ()


def words_of(count: int, seed: int | str) -> str:
    """Make up a text of so many words; the same seed gives the same text."""
    draw = random.Random(seed)
    return " ".join(draw.choice(_WORDS) for _ in range(count))


def reads_data(form: str) -> bool:
    """Whether a form of prompts is read from the folder of data."""
    return form in _SETS


def prompt_set(form: str, data_dir: Path, count: int, seed: int) -> PromptSet:
    """Give the prompts that a command line names.

    Args:
        form: one of `FORMS`.
        data_dir: the folder of the published sets.
        count: prompts at most, taken evenly from all; texts that are made up are all different.
        seed: of texts that are made up.

    Raises:
        ConfigError: no such set, or its file is not there.
        InvalidRequestError: a file of prompts cannot be read.
    """
    name, *values = form.split(":")
    if form in _SETS:
        return _published(form, data_dir, count)
    if form == "chat":
        return PromptSet(form, f"{len(BUILT_IN)} built-in openings", [Ask(t) for t in BUILT_IN])
    if form == "copy-heavy":
        asks = [Ask(text) for text in COPY_REQUESTS]
        return PromptSet(form, f"{len(asks)} requests to edit a text", asks)
    if name == "shared-prefix":
        groups, words = _integers(form, values or [str(_GROUPS), str(_PREFIX_WORDS)])
        return _shared_prefix(form, groups, words, count, seed)
    if name == "random":
        return made_up(form, [tuple(_integers(form, values))] * count, seed)
    if not Path(form).is_file():
        raise ConfigError(f"prompts: {form!r} is no file, and not one of {', '.join(FORMS[:-1])}.")
    return _from_file(Path(form))


def made_up(name: str, lengths: Sequence[tuple[int, ...]], seed: int) -> PromptSet:
    """Make up prompts of given lengths.

    Args:
        name: of the set.
        lengths: tokens of each prompt and its answer.
        seed: of the texts.
    """
    asks = [
        Ask(words_of(prompt, f"{seed}-{number}"), prompt, max(1, answer))
        for number, (prompt, answer) in enumerate(lengths)
    ]
    source = f"{len(asks)} made-up texts"
    return PromptSet(name, source, asks, tuple(prompt for prompt, _ in lengths))


def body_of(ask: Ask, endpoint: str) -> dict[str, Any]:
    """Give a prompt's part of a request's body.

    Raises:
        ConfigError: the endpoint does not take such a prompt.
    """
    is_text = isinstance(ask.prompt, str)
    is_messages = not is_text and isinstance(ask.prompt[0], dict)
    if endpoint == COMPLETIONS:
        if is_messages:
            raise ConfigError("endpoint: completions take no messages; use --endpoint chat.")
        return {"prompt": ask.prompt}
    if not is_text and not is_messages:
        raise ConfigError("endpoint: chats take no token ids; use --endpoint completions.")
    turn = [{"role": "user", "content": ask.prompt}]
    return {"messages": ask.prompt if is_messages else turn}


def _published(name: str, data_dir: Path, count: int) -> PromptSet:
    path = data_dir / _SETS[name]
    if not path.is_file():
        raise ConfigError(f"prompts: {name} needs {path}, which is not there; see --data.")
    texts = [_KEYS[name](row) for row in _rows(path)]
    stride = max(1, len(texts) // count)
    chosen = texts[::stride][:count]
    return PromptSet(name, f"{len(chosen)} of {len(texts)} prompts", [Ask(t) for t in chosen])


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    read = gzip.open if path.suffix == ".gz" else open
    with read(path, "rt", encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def _shared_prefix(form: str, groups: int, words: int, count: int, seed: int) -> PromptSet:
    prefixes = [words_of(words, f"{seed}-prefix-{group}") for group in range(groups)]
    asks = [
        Ask(f"{prefixes[number % groups]} {words_of(_OWN_WORDS, f'{seed}-{number}')}")
        for number in range(count)
    ]
    source = f"{count} made-up texts, {groups} beginnings of {words} words in turn"
    return PromptSet(form, source, asks)


def _from_file(path: Path) -> PromptSet:
    asks = [_ask_of(line) for line in read_prompt_lines(path, "prompts")]
    if not asks:
        raise InvalidRequestError(f"prompts: {path} holds no prompts.")
    return PromptSet(path.stem, f"{len(asks)} prompts of {path.name}", asks)


def _ask_of(line: PromptLine) -> Ask:
    key = next(key for key in ("messages", "prompt", "prompt_token_ids") if key in line.content)
    value = line.content[key]
    if not value or not isinstance(value, str if key == "prompt" else list):
        raise InvalidRequestError(f"{line.place}: {key} is empty, or of another type.", param=key)
    return Ask(value)


def _integers(form: str, words: Sequence[str]) -> tuple[int, int]:
    try:
        first, second = map(int, words)
    except ValueError:
        first = 0
    if first < 1 or second < 1:
        raise ConfigError(f"prompts: {form!r} needs two numbers from 1, such as random:512:128.")
    return first, second
