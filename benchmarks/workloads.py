"""Prompts to measure with; none of them was training text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, permutations
from pathlib import Path
from typing import Any

from benchmarks.copy_texts import COPY_REQUESTS
from engine.held_out import is_held_out, read_jsonl
from engine.prompts import PromptTokenizer

_DIALOGUES = Path("corpus/sgd_dialogues/dialogues.jsonl.xz")
SHARED = Path(__file__).resolve().parents[1].parent / "shared"
WORKLOADS = ("chat", "copy")
_NUM_CHATS = 32

BUILT_IN = (
    "I am looking for a restaurant in San Jose.",
    "Can you find me a movie to watch tonight?",
    "I need a train to Sacramento on Friday morning.",
    "Tell me a story about a dog and a little girl.",
    "Please book a hotel room for two people in Seattle.",
    "What will the weather be like in Oakland tomorrow?",
    "I want to rent a car next Monday at noon.",
    "Tell me a short story about a brave bird.",
    "Play some rock music for me, please.",
    "I would like a haircut somewhere in Berkeley.",
    "Are there any concerts in New York this weekend?",
    "I need to send 200 dollars to my sister.",
)


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompts to measure with.

    Attributes:
        name: for tables and plots.
        source: where the prompts come from, in words.
        prompts: token ids.
    """

    name: str
    source: str
    prompts: list[list[int]]

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.prompts))


def built_in_workload(name: str, tokenizer: PromptTokenizer, data_dir: Path) -> Workload:
    """Give a workload of `WORKLOADS`.

    `chat` opens dialogues: held-out ones where the corpus is there, else those written here.
    `copy` asks for edits and summaries of texts, so that answers repeat their prompts, as far as
    the model follows.

    Raises:
        InvalidRequestError: the model has no tokenizer.
    """
    assert name in WORKLOADS, name
    if name == "chat":
        is_there = (data_dir / _DIALOGUES).is_file()
        openings = chat_openings(data_dir, _NUM_CHATS if is_there else len(BUILT_IN))
        source = "held-out dialogues" if is_there else "built-in openings"
    else:
        openings = [[{"role": "user", "content": text}] for text in COPY_REQUESTS]
        source = "built-in requests to edit a text"
    prompts = render_openings(tokenizer, openings)
    return Workload(name, f"{len(prompts)} {source}", prompts)


def render_openings(
    tokenizer: PromptTokenizer, openings: Iterable[list[dict[str, str]]]
) -> list[list[int]]:
    """Turn openings into prompts: as chats, or as texts where the model knows no chats.

    Raises:
        InvalidRequestError: the model has no tokenizer.
    """
    render = _as_chat if tokenizer.has_chat_template else _as_text
    return [render(tokenizer, opening) for opening in openings]


def _as_chat(tokenizer: PromptTokenizer, opening: list[dict[str, str]]) -> list[int]:
    return tokenizer.render_chat(opening)


def _as_text(tokenizer: PromptTokenizer, opening: list[dict[str, str]]) -> list[int]:
    """Give what is said, for models that know no chats."""
    return tokenizer.encode("\n".join(message["content"] for message in opening))


def chat_openings(data_dir: Path, count: int) -> list[list[dict[str, str]]]:
    """Give held-out dialogues where the corpus is there, else the built-in openings in turn."""
    if (data_dir / _DIALOGUES).is_file():
        return held_out_dialogues(data_dir, count)
    texts = [BUILT_IN[index % len(BUILT_IN)] for index in range(count)]
    return [[{"role": "user", "content": text}] for text in texts]


def distinct_openings(data_dir: Path, count: int) -> list[list[dict[str, str]]]:
    """Give openings of which no two are alike, at most `count`.

    Where the corpus is not there, they are the built-in ones, alone and in pairs.
    """
    if (data_dir / _DIALOGUES).is_file():
        return held_out_dialogues(data_dir, count)
    pairs = (f"{first} {second}" for first, second in permutations(BUILT_IN, 2))
    texts = islice((*BUILT_IN, *pairs), count)
    return [[{"role": "user", "content": text}] for text in texts]


def held_out_dialogues(data_dir: Path, count: int) -> list[list[dict[str, str]]]:
    """Give the openings of `count` task dialogues that the demo pair never saw.

    Each ends with a user's turn: the first, second or third of its dialogue in rotation.

    Args:
        data_dir: the folder that holds `corpus/sgd_dialogues`.

    Raises:
        FileNotFoundError: the corpus is not there.
    """
    openings: list[list[dict[str, str]]] = []
    for row in _held_out(data_dir):
        if len(openings) == count:
            break
        openings.append(_opening(row, 2 * (len(openings) % 3) + 1))
    return openings


def held_out_replies(data_dir: Path, count: int) -> list[tuple[str, str]]:
    """Give the first two turns of `count` task dialogues that the demo pair never saw.

    Raises:
        FileNotFoundError: the corpus is not there.
    """
    openings = (_opening(row, 2) for row in islice(_held_out(data_dir), count))
    return [(question["content"], reply["content"]) for question, reply in openings]


def _held_out(data_dir: Path) -> Iterator[dict[str, Any]]:
    return (row for row in read_jsonl(data_dir / _DIALOGUES) if is_held_out(row["id"]))


def _opening(row: dict[str, Any], num_turns: int) -> list[dict[str, str]]:
    return [{"role": m["role"], "content": m["content"]} for m in row["messages"][:num_turns]]


def chat_prompts(tokenizer: Any, dialogues: list[list[dict[str, str]]]) -> list[list[int]]:
    """Render dialogues with the tokenizer's own chat template, as token ids."""
    texts = [
        tokenizer.apply_chat_template(d, tokenize=False, add_generation_prompt=True)
        for d in dialogues
    ]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
