"""Backends are compared on made-up passes; only who agrees with our kernels can win."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import pytest
import torch

from kernels.attention_backends import AttentionKind, PassClass, TritonAttention
from kernels.attention_choice import AttentionChoice, TrialSizes, choose_backends, made_up_inputs
from kernels.paged_attention import paged_attention
from kernels.paged_layout import PagedLayout

PLAIN = AttentionKind(4, 2, 16, 16)
WINDOWED = replace(PLAIN, sliding_window=5)
CAPPED = replace(PLAIN, has_softcap=True)
SIZES = TrialSizes(
    num_seqs=3, num_rows=4, num_keys=19, num_prompt_tokens=70, max_seq_len=100, block_size=4,
    dtype=torch.float32, device=torch.device("cpu"),
)  # fmt: skip


@dataclass(eq=False)
class Twin:
    """Another backend: ours, off by a factor, or by a key."""

    name: str = "twin"
    passes: frozenset[PassClass] = frozenset(PassClass)
    factor: float = 1.0
    extra_keys: int = 0
    error: Exception | None = None
    layouts: list[PagedLayout] = field(default_factory=list)

    def supports(self, kind: AttentionKind) -> bool:
        return kind.is_plain

    def attend(
        self,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        layout: PagedLayout,
        *,
        scaling: float,
        sliding_window: int | None,
    ) -> torch.Tensor:
        if self.error is not None:
            raise self.error
        self.layouts.append(layout)
        window = None if sliding_window is None else sliding_window + self.extra_keys
        attended = paged_attention(
            query, key_cache, value_cache, layout, scaling=scaling, sliding_window=window
        )
        return self.factor * attended


@dataclass
class FakeTimer:
    """Says how long each backend takes, and notes who was timed and how."""

    seconds: dict[str, float]
    timed: list[tuple[str, bool]] = field(default_factory=list)

    def __call__(self, call: Callable[[], torch.Tensor], *, is_recorded: bool) -> float:
        assert isinstance(call, partial)
        name = call.func.__self__.name
        self.timed.append((name, is_recorded))
        return self.seconds[name]


FAST_TWIN = {"triton": 2.0, "twin": 1.0}
SLOW_TWIN = {"triton": 1.0, "twin": 2.0}


def names_of(choice: AttentionChoice) -> set[str]:
    """Give who was chosen anywhere."""
    return set(choice.names.values())


def test_the_fastest_is_chosen_in_every_pass() -> None:
    choice = choose_backends([Twin()], [PLAIN, PLAIN], SIZES, FakeTimer(FAST_TWIN))
    assert choice.names == {
        "decode 4x2x16": "twin",
        "verify 4x2x16": "twin",
        "prefill 4x2x16": "twin",
    }
    assert not choice.is_ours


def test_ours_is_chosen_where_it_is_the_fastest() -> None:
    choice = choose_backends([Twin()], [PLAIN], SIZES, FakeTimer(SLOW_TWIN))
    assert choice.is_ours
    assert names_of(choice) == {"triton"}


def test_nothing_is_timed_where_nobody_else_is_there() -> None:
    timer = FakeTimer({})
    assert choose_backends([], [PLAIN, WINDOWED], SIZES, timer).is_ours
    assert not timer.timed


def test_soft_capping_and_sinks_keep_to_ours() -> None:
    kinds = [CAPPED, replace(PLAIN, has_sinks=True), replace(PLAIN, value_head_dim=8)]
    timer = FakeTimer(FAST_TWIN)
    assert choose_backends([Twin()], kinds, SIZES, timer).is_ours
    assert not timer.timed


def test_who_serves_prompts_alone_is_tried_on_prompts_alone() -> None:
    timer = FakeTimer(FAST_TWIN)
    twin = Twin(passes=frozenset({PassClass.PREFILL}))
    choice = choose_backends([twin], [PLAIN], SIZES, timer)
    assert choice.names["decode 4x2x16"] == choice.names["verify 4x2x16"] == "triton"
    assert choice.names["prefill 4x2x16"] == "twin"
    assert timer.timed == [("twin", False), ("triton", True)]


@pytest.mark.parametrize(
    ("twin", "kind", "reason"),
    [
        (Twin(factor=1.01), PLAIN, "differs from ours by 0.01"),
        (Twin(factor=float("nan")), PLAIN, "differs from ours by nan"),
        (Twin(extra_keys=1), WINDOWED, "differs from ours by"),
        (Twin(error=RuntimeError("pages of 16\nand a trace")), PLAIN, "pages of 16'"),
    ],
    ids=["scaled", "nan", "window", "fails"],
)
def test_who_is_wrong_or_fails_is_not_chosen_and_the_log_says_why(
    twin: Twin, kind: AttentionKind, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert choose_backends([twin], [kind], SIZES, FakeTimer(FAST_TWIN)).is_ours
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert all("backend=twin" in line and reason in line for line in lines)


def test_who_is_wanted_is_chosen_though_it_is_slower() -> None:
    choice = choose_backends([Twin()], [PLAIN], SIZES, FakeTimer(SLOW_TWIN), wanted="twin")
    assert names_of(choice) == {"twin"}


@pytest.mark.parametrize(
    ("twin", "kind", "reason"),
    [
        (Twin(), CAPPED, "twin does not serve layers like 4x2x16"),
        (Twin(factor=2.0), PLAIN, "decode 4x2x16: differs"),
        (Twin(error=OSError("no compiler")), PLAIN, "decode 4x2x16: no compiler"),
    ],
    ids=["unsupported", "wrong", "fails"],
)
def test_who_is_wanted_and_cannot_serve_is_refused(
    twin: Twin, kind: AttentionKind, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        choose_backends([twin], [kind], SIZES, FakeTimer(FAST_TWIN), wanted="twin")


@pytest.mark.parametrize("pass_class", PassClass)
def test_made_up_layouts_are_of_their_class_and_cross_the_window(pass_class: PassClass) -> None:
    _, _, _, layout = made_up_inputs(replace(PLAIN, sliding_window=60), pass_class, SIZES)
    assert PassClass.of(layout) is pass_class
    assert int(layout.seq_lens.min()) > 60
    assert (layout.host is not None) == (pass_class is PassClass.PREFILL)


def test_a_call_goes_to_who_was_chosen_for_its_kind_and_pass() -> None:
    twin = Twin()
    choice = AttentionChoice({(PLAIN, PassClass.VERIFY): twin})
    for pass_class in PassClass:
        *tensors, layout = made_up_inputs(PLAIN, pass_class, SIZES)
        attended = choice.attend(*tensors, layout, scaling=0.25)
        assert torch.equal(attended, paged_attention(*tensors, layout, scaling=0.25))
    assert [PassClass.of(layout) for layout in twin.layouts] == [PassClass.VERIFY]


def test_trees_other_kinds_and_layouts_unknown_to_the_host_stay_with_ours() -> None:
    twin = Twin(passes=frozenset({PassClass.PREFILL}))
    choice = AttentionChoice({(PLAIN, PassClass.VERIFY): twin, (PLAIN, PassClass.PREFILL): twin})
    *tensors, layout = made_up_inputs(PLAIN, PassClass.VERIFY, SIZES)
    masks = torch.tensor([1, 3, 5, 9] * SIZES.num_seqs)
    choice.attend(*tensors, replace(layout, tree_masks=masks), scaling=0.25)
    choice.attend(*tensors, layout, scaling=0.25, softcap=3.0)
    *tensors, layout = made_up_inputs(PLAIN, PassClass.PREFILL, SIZES)
    choice.attend(*tensors, replace(layout, host=None), scaling=0.25)
    assert not twin.layouts
    choice.attend(*tensors, layout, scaling=0.25)
    assert twin.layouts == [layout]


@pytest.mark.gpu
def test_calls_are_timed_on_the_device() -> None:
    from kernels.attention_timer import time_call

    sizes = replace(SIZES, dtype=torch.bfloat16, device=torch.device("cuda"), block_size=16)
    kind = AttentionKind(32, 8, 128, 128)
    twin = Twin()
    for pass_class in PassClass:
        inputs = made_up_inputs(kind, pass_class, sizes)
        call = partial(TritonAttention().attend, *inputs, scaling=0.1, sliding_window=None)
        assert all(1e-6 < time_call(call, is_recorded=own) < 1e-2 for own in (True, False))
    assert len(choose_backends([twin], [kind], sizes, time_call).names) == 3
    assert twin.layouts
