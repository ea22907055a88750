"""Packs encoded documents into rows and hands out batches, deterministically and resumably.

Knows token lists, row lengths and its own position in the stream. Refuses to know text.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.training.tokenizer import PAD_ID

IGNORE_LABEL = -100


def pack(documents: list[list[int]], length: int, rng: random.Random) -> list[list[int]]:
    """Fill rows of at most `length` tokens by best fit, so that documents start whole.

    A document longer than a row is cut into pieces. The order of rows and of the documents
    inside a row is random.
    """
    pieces = [d[i : i + length] for d in documents for i in range(0, len(d), length)]
    rng.shuffle(pieces)
    pieces.sort(key=len, reverse=True)
    open_rows: list[list[list[list[int]]]] = [[] for _ in range(length + 1)]
    rows: list[list[list[int]]] = []
    for piece in pieces:
        room = next((c for c in range(len(piece), length + 1) if open_rows[c]), None)
        if room is None:
            row: list[list[int]] = []
            rows.append(row)
            room = length
        else:
            row = open_rows[room].pop()
        row.append(piece)
        open_rows[room - len(piece)].append(row)
    rng.shuffle(rows)
    for row in rows:
        rng.shuffle(row)
    return [[token for piece in row for token in piece] for row in rows]


def to_batch(rows: list[list[int]], length: int) -> tuple[Tensor, Tensor]:
    """Give (inputs, labels), both [num_rows, length] int64; labels are the next tokens."""
    inputs = torch.full((len(rows), length), PAD_ID)
    labels = torch.full((len(rows), length), IGNORE_LABEL)
    for i, row in enumerate(rows):
        tokens = torch.tensor(row[: length + 1])
        inputs[i, : min(len(row), length)] = tokens[:length]
        labels[i, : len(tokens) - 1] = tokens[1:]
    return inputs, labels


@dataclass(slots=True)
class StreamState:
    """Where a stream stands: the epoch, the next row of it, and the row length in force."""

    epoch: int = 0
    row: int = 0
    length: int = 0


class RowStream:
    """An endless stream of batches over epochs that are rendered on demand."""

    def __init__(self, epoch_documents: Callable[[int], list[list[int]]], seed: int) -> None:
        """Take a function from epoch number to encoded documents, and the shuffling seed."""
        self.state = StreamState()
        self._epoch_documents = epoch_documents
        self._seed = seed
        self._rows: list[list[int]] = []
        self._loaded: tuple[int, int] | None = None

    def next_batch(self, num_rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Give the next (inputs, labels); a new row length starts a new epoch."""
        if self.state.length not in (0, length):
            self.state = StreamState(self.state.epoch + 1, 0, length)
        self.state.length = length
        self._load()
        if self.state.row + num_rows > len(self._rows):
            self.state = StreamState(self.state.epoch + 1, 0, length)
            self._load()
        chosen = self._rows[self.state.row : self.state.row + num_rows]
        self.state.row += num_rows
        return to_batch(chosen, length)

    def _load(self) -> None:
        wanted = (self.state.epoch, self.state.length)
        if self._loaded != wanted:
            rng = random.Random(self._seed * 1_000_003 + self.state.epoch)
            self._rows = pack(self._epoch_documents(self.state.epoch), self.state.length + 1, rng)
            self._loaded = wanted
