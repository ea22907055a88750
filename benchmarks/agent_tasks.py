"""Traffic of an agent that does the same tasks again and again, with small edits of what it asks.

Tasks are the openings of dialogues. An edit changes a time or a number, a name, or adds a sentence;
no two rounds of a task are alike. All texts but the dialogues were written for this file.
"""

from __future__ import annotations

import random
import re

_TIMES = ("8:15 am", "9:30 am", "10:45 am", "1:20 pm", "3:10 pm", "5:40 pm", "6:55 pm", "8:05 pm")
_NAMES = ("Anna", "Marek", "Sofia", "David", "Lena", "Omar", "Ruth", "Felix")
_SENTENCES = (
    "Please be quick.",
    "Thank you in advance.",
    "I am asking for a friend.",
    "It does not have to be cheap.",
    "I have some time now.",
    "This is for the whole family.",
    "Please keep it short.",
    "I would be glad of your help.",
)
_NUMBER = re.compile(r"\d+")

Opening = list[dict[str, str]]


def edited(opening: Opening, round_index: int, task_index: int) -> Opening:
    """Give a task as it is asked in a round; in the first, as it is.

    Args:
        opening: messages, the last of which the user says.
        round_index: from 0.
        task_index: so that tasks are not edited alike.
    """
    if round_index == 0:
        return opening
    last = opening[-1]
    edits = (_other_number, _name, _sentence)
    edit = edits[(round_index + task_index) % len(edits)]
    # Rounds with the same kind of edit have other words for it, until all have been used.
    content = edit(last["content"], round_index // len(edits) + task_index)
    return [*opening[:-1], {**last, "content": content}]


def _other_number(text: str, place: int) -> str:
    """Change the first number; where there is none, say what time it is."""
    if _NUMBER.search(text) is None:
        return f"It is {_pick(_TIMES, place)}. {text}"
    number = random.Random(place).randint(2, 28)
    return _NUMBER.sub(str(number), text, count=1)


def _name(text: str, place: int) -> str:
    return f"This is {_pick(_NAMES, place)}. {text}"


def _sentence(text: str, place: int) -> str:
    return f"{text} {_pick(_SENTENCES, place)}"


def _pick(words: tuple[str, ...], place: int) -> str:
    return words[place % len(words)]
