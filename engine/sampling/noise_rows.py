"""The Gumbel noise of one step's rows: computed together, and never twice.

Knows which (request, position) each row of noise belongs to; what the noise is, `noise.py` knows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.request import Request
from engine.sampling.noise import gumbel_noise
from engine.sampling.sampling_batch import Rows, SamplingBatch


@dataclass(slots=True)
class _Place:
    """Where a request's noise lies: rows for positions from `start` on.

    Attributes:
        request: whose it is.
        start: the first position.
        first_row: its row.
        is_drawn: for each position, whether its noise is there already.
    """

    request: Request
    start: int
    first_row: int
    is_drawn: list[bool]


class NoiseRows:
    """The noise of one step: drawn when it is first asked for, and kept for the next step.

    Target and draft read the same rows. A position whose draft was rejected is sampled again in
    the next step, from the same noise; one that nobody drafted costs nothing.

    Attributes:
        seconds: time spent drawing so far.
    """

    def __init__(self) -> None:
        self._batch: SamplingBatch | None = None
        self._noise = torch.zeros(0, 0)
        self._places: dict[str, _Place] = {}
        self.seconds = 0.0

    def rows(self, batch: SamplingBatch, rows: Rows, chosen: Sequence[int]) -> torch.Tensor:
        """The noise of some rows, whose requests all sample (temperature above 0).

        Args:
            batch: this step's requests.
            rows: all rows of a pass.
            chosen: which of them.

        Returns:
            `[len(chosen), batch.vocab_size]`, float32.
        """
        if batch is not self._batch:
            self._advance(batch)
        picks = []
        missing: list[tuple[int, int, int]] = []
        missing_rows: list[int] = []
        for row in chosen:
            index, offset = rows.request_index[row], rows.offset[row]
            assert offset <= batch.max_offsets[index], "the batch was built for fewer drafts"
            place = self._places[batch.requests[index].request_id]
            picks.append(place.first_row + offset)
            if not place.is_drawn[offset]:
                place.is_drawn[offset] = True
                missing.append(_key(place.request, place.start + offset))
                missing_rows.append(picks[-1])
        self._draw(missing, missing_rows, batch)
        if _are_consecutive(picks):
            return self._noise[picks[0] : picks[-1] + 1]
        return self._noise[torch.tensor(picks).to(batch.device)]

    def _advance(self, batch: SamplingBatch) -> None:
        places: dict[str, _Place] = {}
        kept: list[tuple[int, int]] = []
        num_rows = 0
        for request, start, limit in zip(
            batch.requests, batch.num_tokens, batch.max_offsets, strict=True
        ):
            if request.params.is_greedy:
                continue
            place = _Place(request, start, num_rows, [False] * (limit + 1))
            num_rows += limit + 1
            for offset in range(limit + 1):
                source = self._find(request, start + offset)
                if source is not None:
                    place.is_drawn[offset] = True
                    kept.append((place.first_row + offset, source))
            places[request.request_id] = place
        noise = torch.empty(num_rows, batch.vocab_size, device=batch.device)
        if kept:
            index = torch.tensor(kept).to(batch.device)
            noise[index[:, 0]] = self._noise[index[:, 1]]
        self._noise, self._places, self._batch = noise, places, batch

    def _find(self, request: Request, position: int) -> int | None:
        place = self._places.get(request.request_id)
        if place is None or place.request is not request:
            return None
        offset = position - place.start
        if 0 <= offset < len(place.is_drawn) and place.is_drawn[offset]:
            return place.first_row + offset
        return None

    def _draw(
        self, missing: Sequence[tuple[int, int, int]], rows: Sequence[int], batch: SamplingBatch
    ) -> None:
        if not missing:
            return
        started = time.perf_counter()
        seeds, choices, positions = ([key[i] for key in missing] for i in range(3))
        fresh = gumbel_noise(seeds, choices, positions, batch.vocab_size, batch.device)
        if _are_consecutive(rows):
            self._noise[rows[0] : rows[-1] + 1] = fresh
        else:
            self._noise[torch.tensor(rows).to(batch.device)] = fresh
        self.seconds += time.perf_counter() - started


def _are_consecutive(rows: Sequence[int]) -> bool:
    return all(row == place for place, row in enumerate(rows, start=rows[0]))


def _key(request: Request, position: int) -> tuple[int, int, int]:
    seed = request.params.seed
    assert seed is not None, "the engine's door draws a seed"
    return seed, request.choice_index, position
