"""Packed, chunked, paged forward passes give each family's own logits."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from transformers import PreTrainedModel

from engine.kv_cache.storage import KVCacheStorage
from engine.model.forward import forward_packed
from engine.model.loader import LoadedModel, from_model
from kernels.paged_attention import plan_paged_attention
from tests.parity.families import FAMILIES, VOCAB_SIZE, build_family

BLOCK_SIZE = 4
LENGTHS = (37, 5, 90)
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


@dataclass
class Packed:
    """A tiny paged engine: prompts with scattered blocks, and how far each is computed."""

    loaded: LoadedModel
    prompts: list[torch.Tensor]

    def __post_init__(self) -> None:
        longest = max(len(prompt) for prompt in self.prompts)
        num_blocks = 1 + len(self.prompts) * -(-longest // BLOCK_SIZE)
        order = torch.randperm(num_blocks - 1, generator=torch.Generator().manual_seed(1)) + 1
        self.tables = order.to(torch.int32).view(len(self.prompts), -1)
        self.storage = KVCacheStorage(
            self.loaded.layers, num_blocks, BLOCK_SIZE, torch.float32, torch.device("cpu")
        )
        self.num_computed = [0] * len(self.prompts)

    def step(self, num_tokens: dict[int, int], *, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the next tokens of some prompts; returns the packed logits."""
        positions, slots, token_ids = [], [], []
        for index, count in num_tokens.items():
            own = torch.arange(self.num_computed[index], self.num_computed[index] + count)
            blocks = self.tables[index][own // BLOCK_SIZE].long()
            positions.append(own)
            slots.append(blocks * BLOCK_SIZE + own % BLOCK_SIZE)
            token_ids.append(self.prompts[index][own])
            self.num_computed[index] += count
        plan = plan_paged_attention(
            self.tables[list(num_tokens)],
            torch.tensor([0, *num_tokens.values()]).cumsum(0),
            torch.tensor([self.num_computed[index] for index in num_tokens]),
            BLOCK_SIZE,
        )
        packed = torch.cat(token_ids)
        wanted = torch.arange(len(packed)) if rows is None else rows
        return forward_packed(
            self.loaded, self.storage, packed, torch.cat(positions), torch.cat(slots), plan, wanted
        )


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, LoadedModel]:
    """An untouched model and the same weights behind paged attention."""
    return build_family(request.param), from_model(build_family(request.param))


@pytest.fixture(scope="module")
def prompts() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(VOCAB_SIZE, (length,), generator=generator) for length in LENGTHS]


@pytest.fixture(scope="module")
def expected(
    pair: tuple[PreTrainedModel, LoadedModel], prompts: list[torch.Tensor]
) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [pair[0](input_ids=prompt[None], use_cache=False).logits[0] for prompt in prompts]


def test_packed_prompts_give_the_models_own_logits(
    pair: tuple[PreTrainedModel, LoadedModel],
    prompts: list[torch.Tensor],
    expected: list[torch.Tensor],
) -> None:
    logits = Packed(pair[1], prompts).step(dict(enumerate(LENGTHS)))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, torch.cat(expected), **TOLERANCE)


def test_chunks_decode_and_verify_rows_give_the_models_own_logits(
    pair: tuple[PreTrainedModel, LoadedModel],
    prompts: list[torch.Tensor],
    expected: list[torch.Tensor],
) -> None:
    packed = Packed(pair[1], prompts)
    found: list[list[torch.Tensor]] = [[] for _ in prompts]
    for num_tokens in (
        {0: 20, 2: 11},
        {0: 1, 2: 13, 1: 4},
        {0: 5, 1: 1},
        {2: 65, 0: 1},
        {0: 5},
        {0: 5, 2: 1},
    ):
        logits = packed.step(num_tokens).split(list(num_tokens.values()))
        for index, rows in zip(num_tokens, logits, strict=True):
            found[index].append(rows)
    assert packed.num_computed == list(LENGTHS)
    for rows, own in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.cat(rows), own, **TOLERANCE)


def test_rejected_slots_are_overwritten(
    pair: tuple[PreTrainedModel, LoadedModel],
    prompts: list[torch.Tensor],
    expected: list[torch.Tensor],
) -> None:
    packed = Packed(pair[1], [prompts[0].clone(), prompts[2]])
    packed.prompts[0][22:25] = 0
    packed.step({0: 25, 1: 30})
    packed.prompts[0] = prompts[0]
    packed.num_computed[0] = 22
    logits = packed.step({0: 15, 1: 1})
    torch.testing.assert_close(logits[:15], expected[0][22:], **TOLERANCE)
    torch.testing.assert_close(logits[15:], expected[2][30:31], **TOLERANCE)


def test_only_the_wanted_rows_get_logits(
    pair: tuple[PreTrainedModel, LoadedModel],
    prompts: list[torch.Tensor],
    expected: list[torch.Tensor],
) -> None:
    packed = Packed(pair[1], prompts)
    rows = torch.tensor([36, 41])
    logits = packed.step({0: 37, 1: 5}, rows=rows)
    torch.testing.assert_close(logits, torch.cat([expected[0][-1:], expected[1][-1:]]), **TOLERANCE)
    none = packed.step({2: 7}, rows=torch.tensor([], dtype=torch.int64))
    assert none.shape == (0, VOCAB_SIZE)
