"""The Gumbel noise of one step's rows: computed together, and never twice.

Knows which (request, position) each row of noise belongs to; what the noise is, `noise.py` knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.request import Request
from engine.sampling.noise import gumbel_noise
from engine.sampling.sampling_batch import Rows, SamplingBatch


@dataclass(slots=True)
class _Place:
    """Where a request's noise lies: rows for positions `[start, start + num_rows)`."""

    request: Request
    start: int
    first_row: int
    num_rows: int


class NoiseRows:
    """The noise of one step: computed once for draft and target, and kept for the next step.

    A position whose draft was rejected is sampled again in the next step, from the same noise.
    """

    def __init__(self) -> None:
        self._batch: SamplingBatch | None = None
        self._noise = torch.zeros(0, 0)
        self._places: dict[str, _Place] = {}

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
        for row in chosen:
            index, offset = rows.request_index[row], rows.offset[row]
            assert offset <= batch.max_offsets[index], "the batch was built for fewer drafts"
            picks.append(self._places[batch.requests[index].request_id].first_row + offset)
        first, last = picks[0], picks[-1]
        if picks == list(range(first, last + 1)):
            return self._noise[first : last + 1]
        return self._noise[torch.tensor(picks).to(batch.device)]

    def _advance(self, batch: SamplingBatch) -> None:
        places: dict[str, _Place] = {}
        sources: list[int | None] = []
        missing: list[tuple[int, int, int]] = []
        for request, start, limit in zip(
            batch.requests, batch.num_tokens, batch.max_offsets, strict=True
        ):
            seed = request.params.seed
            if request.params.is_greedy:
                continue
            assert seed is not None, "the engine's door draws a seed"
            places[request.request_id] = _Place(request, start, len(sources), limit + 1)
            for position in range(start, start + limit + 1):
                source = self._find(request, position)
                sources.append(source)
                if source is None:
                    missing.append((seed, request.choice_index, position))
        self._noise = self._assemble(sources, missing, batch)
        self._places, self._batch = places, batch

    def _find(self, request: Request, position: int) -> int | None:
        place = self._places.get(request.request_id)
        if place is None or place.request is not request:
            return None
        row = position - place.start
        return place.first_row + row if 0 <= row < place.num_rows else None

    def _assemble(
        self,
        sources: list[int | None],
        missing: list[tuple[int, int, int]],
        batch: SamplingBatch,
    ) -> torch.Tensor:
        seeds, choices, positions = ([key[i] for key in missing] for i in range(3))
        fresh = gumbel_noise(seeds, choices, positions, batch.vocab_size, batch.device)
        if len(missing) == len(sources):
            return fresh
        new = [row for row, source in enumerate(sources) if source is None]
        old = [row for row, source in enumerate(sources) if source is not None]
        places = torch.tensor(new + old, dtype=torch.int64)
        kept = torch.tensor([source for source in sources if source is not None])
        noise = torch.empty(len(sources), batch.vocab_size, device=batch.device)
        noise[places[: len(new)].to(batch.device)] = fresh
        noise[places[len(new) :].to(batch.device)] = self._noise[kept.to(batch.device)]
        return noise
