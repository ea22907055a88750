"""The fused sampler takes the tokens of the pipeline in `engine/sampling`, in torch and in Triton.

The Triton kernels run with tiny blocks, so that rows span several blocks and programs, and with
room for few scores near the limits, so that whole rows are searched as well.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch

from engine.sampling.noise import gumbel_noise
from kernels.gumbel_sample import SampledRows, SampleRows, gumbel_sample, gumbel_sample_reference
from tests.kernels.sample_cases import (
    SampleCase,
    assert_same,
    make_case,
    moved,
    poisoned_memory,
    random_settings,
)

VOCAB = 300
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAN, INF = float("nan"), float("inf")
Sample = Callable[..., SampledRows]

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def in_torch(logits: torch.Tensor, rows: SampleRows, **wanted: bool) -> SampledRows:
    return gumbel_sample_reference(logits, rows, **wanted)


def in_triton(capacity: int) -> Sample:
    """Rows in blocks of 64 tokens, two programs each, room for `capacity` scores near limits."""

    def sample(logits: torch.Tensor, rows: SampleRows, **wanted: bool) -> SampledRows:
        from kernels.gumbel_sample_triton import Tiling, gumbel_sample_triton

        tiling = Tiling(
            block=64,
            splits=(2,),
            num_groups=64,
            capacity=capacity,
            few=16,
            num_rounds=2,
            limit_warps=4,
        )
        rows.check(logits)
        with poisoned_memory(), warnings.catch_warnings():
            # The interpreter runs on numpy, which warns of infinities.
            warnings.simplefilter("ignore", RuntimeWarning)
            return gumbel_sample_triton(
                logits.to(DEVICE), moved(rows, DEVICE), tiling=tiling, **wanted
            )

    return sample


WAYS = [
    pytest.param(in_torch, id="torch"),
    pytest.param(in_triton(64), id="triton", marks=needs_triton),
]
NARROW = pytest.param(in_triton(16), id="triton_with_little_room", marks=needs_triton)


def random_logits(num_rows: int, width: int = VOCAB, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, width, generator=generator) * 3.0


def check(case: SampleCase, sample: Sample) -> None:
    """Compare tokens, log probabilities and margins with the pipeline's."""
    before = case.logits.clone()
    sampled = sample(case.logits, case.rows(), with_logprobs=True)
    assert_same(sampled, case.expected())
    assert sampled.margins is None
    check_margins(case, sample)
    torch.testing.assert_close(case.logits, before, rtol=0, atol=0, equal_nan=True)


def check_margins(case: SampleCase, sample: Sample) -> None:
    """Compare tokens and margins with the pipeline's."""
    sampled = sample(case.logits, case.rows(), with_margins=True)
    assert_same(sampled, case.expected(with_margins=True))
    assert sampled.logprobs is None


@pytest.mark.parametrize("sample", WAYS)
@pytest.mark.parametrize("seed", range(3))
def test_takes_the_tokens_of_the_pipeline(seed: int, sample: Sample) -> None:
    num_drafts = [0, 2, 1]
    dtype = [torch.float32, torch.bfloat16, torch.float16][seed % 3]
    logits = random_logits(6, VOCAB + 37, seed).to(dtype)
    settings = [random_settings(10 * seed + index, VOCAB) for index in range(3)]
    check(make_case(logits, settings, num_drafts, vocab_size=VOCAB, masked=[1, 4]), sample)


@pytest.mark.parametrize("seed", range(200))
def test_torch_takes_the_tokens_of_the_pipeline(seed: int) -> None:
    logits = random_logits(9, VOCAB, seed)
    settings = [random_settings(100 * seed + index, VOCAB) for index in range(5)]
    check(make_case(logits, settings, [0, 2, 1, 0, 1], masked=[2, 7, 8]), in_torch)


FILTERS = {
    "top_k": [{"top_k": 5}, {"top_k": 1, "temperature": 1.5}, {"top_k": 64}],
    "top_k_beyond_groups": [{"top_k": 65}, {"top_k": 299, "temperature": 0.7}, {"top_k": 10**6}],
    "top_p": [{"top_p": 0.9}, {"top_p": 0.5, "temperature": 1.6}, {"top_p": 0.99}],
    "top_p_at_its_ends": [{"top_p": 1e-9}, {"top_p": 1 - 1e-12}, {"top_p": 0.05}],
    "min_p": [{"min_p": 0.1}, {"min_p": 1.0, "temperature": 0.8}, {"min_p": 1e-4}],
    "all": [
        {"top_k": 20, "top_p": 0.8, "min_p": 0.01, "temperature": 1.3},
        {"min_p": 0.2, "top_k": 50, "top_p": 0.95},
        {"min_p": 0.001, "top_p": 0.7, "temperature": 1.9},
    ],
    "tiny_temperature": [{"temperature": 1e-42}, {"temperature": 1e-30, "top_p": 0.3}, {}],
    "mixed_with_greedy": [{"temperature": 0.0, "top_k": 3}, {"top_k": 3}, {}],
}


@pytest.mark.parametrize("sample", [*WAYS, NARROW])
@pytest.mark.parametrize("settings", FILTERS.values(), ids=FILTERS.keys())
def test_filters_drop_what_the_pipeline_drops(
    settings: list[dict[str, object]], sample: Sample
) -> None:
    case = make_case(random_logits(3), settings)
    assert_same(
        sample(case.logits, case.rows(), with_margins=True), case.expected(with_margins=True)
    )


@pytest.mark.parametrize("sample", [*WAYS, NARROW])
def test_equal_scores_stay_together_and_the_lowest_id_wins(sample: Sample) -> None:
    settings = [
        {"top_k": 10}, {"top_p": 0.6}, {"min_p": 0.3, "top_p": 0.9}, {"temperature": 0.0},
        {"temperature": 0.0},
    ]  # fmt: skip
    logits = random_logits(5).mul(0.5).round()
    logits[4] = 0.25
    case = make_case(logits, settings)
    assert_same(
        sample(case.logits, case.rows(), with_margins=True), case.expected(with_margins=True)
    )


@pytest.mark.parametrize("sample", WAYS)
def test_signed_zeros_are_equal(sample: Sample) -> None:
    logits = torch.zeros(3, 80)
    logits[:, 40:] = -5.0
    logits[:, :20] = -0.0
    case = make_case(logits, [{"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.2}])
    check(case, sample)


@pytest.mark.parametrize("sample", WAYS)
def test_scores_that_swallow_the_noise_tie_and_the_lowest_id_wins(sample: Sample) -> None:
    logits = random_logits(3)
    logits[:, 70:90] = 1e9
    logits[1, 200] = 1e9
    logits[2] = 1e9
    case = make_case(logits, [{}, {"top_p": 0.9}, {"min_p": 0.5}])
    assert case.expected().token_ids.tolist() == [70, 70, 0]
    check(case, sample)


@pytest.mark.parametrize("sample", WAYS)
def test_rows_without_a_token_are_invalid_and_harm_no_other(sample: Sample) -> None:
    logits = random_logits(9)
    logits[0, 200] = NAN
    logits[1, 0] = NAN
    logits[3, 299] = INF
    logits[4] = -INF
    logits[5, :-1] = -INF
    logits[6, 10] = NAN
    logits[7, 100] = INF
    filters = {"top_k": 4, "top_p": 0.9, "temperature": 0.7}
    settings = [
        {"temperature": 0.0}, filters, {"top_p": 0.8}, {}, filters, {"top_p": 0.9},
        {"top_p": 0.9}, {"temperature": 0.0}, filters,
    ]  # fmt: skip
    case = make_case(logits, settings)
    assert case.expected().is_invalid.tolist() == [1, 1, 0, 1, 1, 0, 1, 1, 0]
    check(case, sample)


@pytest.mark.parametrize("sample", WAYS)
def test_banned_tokens_hide_no_broken_row(sample: Sample) -> None:
    logits = random_logits(2)
    logits[0, 9] = NAN
    logits[1, 9] = INF
    case = make_case(logits, [{"bad_words_token_ids": ((9,),)}] * 2)
    check(case, sample)


@pytest.mark.parametrize("sample", WAYS)
@pytest.mark.parametrize("vocab_size", [1, 2, 63, 64, 65, 257])
def test_vocabularies_of_any_size(vocab_size: int, sample: Sample) -> None:
    settings = [{"temperature": 0.0}, {"temperature": 0.8, "top_p": 0.9}, {"top_k": 7}]
    case = make_case(random_logits(3, vocab_size), settings)
    assert_same(
        sample(case.logits, case.rows(), with_margins=True), case.expected(with_margins=True)
    )


@pytest.mark.parametrize("sample", WAYS)
def test_plain_passes_need_no_flags(sample: Sample) -> None:
    greedy = make_case(random_logits(2), [{"temperature": 0.0}] * 2)
    rows = greedy.rows()
    assert not rows.has_noise
    assert not rows.has_filters
    check(greedy, sample)
    sampled = make_case(random_logits(2), [{}, {"temperature": 0.4}])
    assert not sampled.rows().has_filters
    check(sampled, sample)


@pytest.mark.parametrize("sample", WAYS)
def test_drafts_count_as_the_rows_own_answer(sample: Sample) -> None:
    settings = [{"temperature": 0.0, "frequency_penalty": 2.0, "repetition_penalty": 1.7}]
    case = make_case(random_logits(1, 70).expand(4, 70).clone(), settings, [3])
    case.logits[:, case.drafts[0]] = 9.0
    assert len(set(case.expected().token_ids.tolist())) > 1
    check(case, sample)


@pytest.mark.parametrize("sample", WAYS)
def test_rows_may_lie_apart_in_memory(sample: Sample) -> None:
    logits = random_logits(4, 2 * VOCAB)[::2, VOCAB - 50 :]
    check(make_case(logits, [{}, {"top_k": 9}], vocab_size=130), sample)


@pytest.mark.parametrize("sample", WAYS)
def test_padding_rows_are_harmless(sample: Sample) -> None:
    case = make_case(random_logits(2), [{"top_p": 0.9, "frequency_penalty": 0.5}, {}])
    rows = case.rows()
    scratch = torch.zeros(3, dtype=torch.int32)
    padded = case.rows(
        slots=torch.cat([rows.slots, scratch]), offsets=torch.cat([rows.offsets, scratch])
    )
    logits = torch.cat([case.logits, torch.full((3, VOCAB), NAN)])
    expected = case.expected().token_ids.tolist()
    assert sample(logits, padded).token_ids.tolist()[:2] == expected


@pytest.mark.parametrize("sample", WAYS)
def test_no_rows_give_no_tokens(sample: Sample) -> None:
    sampled = sample(torch.zeros(0, 10), make_case(torch.zeros(0, 10), []).rows())
    assert sampled.token_ids.shape == (0,)


@needs_triton
@pytest.mark.parametrize("position", [5, 2**31 + 5])
def test_noise_is_the_pipelines_bit_for_bit(position: int) -> None:
    from tests.kernels.noise_kernels import noise_kernel

    noise, bounds = (torch.full((4096,), NAN, device=DEVICE) for _ in range(2))
    key = (torch.tensor([value], device=DEVICE) for value in (-2, 3, position))
    noise_kernel[(1,)](*key, noise, bounds, BLOCK=4096)
    expected = gumbel_noise([2**64 - 2], [3], [position], 64 + 4096)[0, 64:]
    if DEVICE == "cpu":
        assert torch.equal(noise, expected)
    torch.testing.assert_close(noise.cpu(), expected, rtol=2e-7, atol=0)
    assert (bounds > noise).all()


@needs_triton
def test_bounds_hold_for_the_most_extreme_noise() -> None:
    from tests.kernels.noise_kernels import bound_kernel

    few = torch.arange(512)
    words = torch.cat([few, 2**32 - 1 - few]).to(DEVICE)
    noise, bounds = (torch.full((1024,), NAN, device=DEVICE) for _ in range(2))
    bound_kernel[(1,)](words, noise, bounds, BLOCK=1024)
    assert (bounds - noise > 5e-4).all()
    assert float(noise.max()) < 23.0


BROKEN = {
    "float64": (torch.zeros(1, VOCAB, dtype=torch.float64), {}, "logits: torch.float64"),
    "too_narrow": (torch.zeros(1, VOCAB - 1), {}, "vocab_size: 300 tokens, but logits of 299"),
    "rows": (torch.zeros(2, VOCAB), {}, "slots: .* instead of 2 rows"),
    "type": (
        torch.zeros(1, VOCAB),
        {"top_p": torch.ones(2)},
        "top_p: torch.float32 on cpu, not torch.float64",
    ),
    "alone": (
        torch.zeros(1, VOCAB),
        {"bias_row": torch.zeros(2, dtype=torch.int32)},
        "bias_row, biases: given together",
    ),
    "bitmask": (
        torch.zeros(1, VOCAB),
        {
            "mask_row": torch.zeros(1, dtype=torch.int32),
            "bitmask": torch.zeros(1, 9, dtype=torch.int32),
        },
        "bitmask: .* is narrower than 10",
    ),
}


@pytest.mark.parametrize(("logits", "changes", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_refuses_what_does_not_fit(
    logits: torch.Tensor, changes: dict[str, torch.Tensor], message: str
) -> None:
    rows = make_case(torch.zeros(1, VOCAB), [{}]).rows(**changes)
    with pytest.raises(ValueError, match=message):
        gumbel_sample(logits, rows)


LLAMA_VOCAB = 128256
NUM_ROWS = 256


def large_case(seed: int, num_rows: int = NUM_ROWS) -> SampleCase:
    """Rows as peaked and as flat as real ones, in all the ways that requests ask for."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_rows, LLAMA_VOCAB, generator=generator)
    logits *= torch.linspace(0.5, 3.5, num_rows)[:, None]
    logits[:, :20] += torch.linspace(0.0, 14.0, num_rows)[:, None]
    settings = [random_settings(1000 * seed + row, LLAMA_VOCAB) for row in range(num_rows)]
    return make_case(logits.bfloat16(), settings, masked=range(0, num_rows, 7))


# Spread of the scores, and by how much the first few stand out.
FLAT = [(1.0, 0.0), (0.6, 0.0), (0.3, 0.0), (1.5, 0.0), (2.0, 0.0)]
PEAKED = [(3.0, 6.0), (4.0, 0.0), (3.0, 0.0), (1.0, 14.0), (2.0, 6.0), (3.0, 14.0)]
ORDINARY = [
    {"top_p": 0.9}, {"top_k": 50, "top_p": 0.9}, {"top_p": 0.5}, {"top_p": 0.99}, {"top_k": 50},
    {"min_p": 0.05}, {"top_p": 0.95, "temperature": 0.7},
]  # fmt: skip


@needs_triton
@pytest.mark.parametrize(
    ("shapes", "settings"),
    [
        pytest.param(FLAT[:1], ORDINARY[:1], id="flat"),
        pytest.param(PEAKED[:1], ORDINARY[:2], id="peaked"),
        pytest.param(FLAT + PEAKED, ORDINARY, id="all", marks=pytest.mark.gpu),
    ],
)
def test_large_rows_are_not_searched_as_a_whole(
    shapes: list[tuple[float, float]],
    settings: list[dict[str, object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import kernels.gumbel_sample_triton as kernels

    found = []

    class Recorded(kernels.Limits):
        def find(self, *args: object) -> None:
            super().find(*args)
            found.append(self)

    monkeypatch.setattr(kernels, "Limits", Recorded)
    logits = random_logits(len(shapes), LLAMA_VOCAB) / 3.0
    logits *= torch.tensor([spread for spread, _ in shapes])[:, None]
    heads = torch.tensor([head for _, head in shapes])[:, None]
    logits[:, :20] += torch.linspace(0, 1, 20) * heads
    logits = logits.repeat_interleave(len(settings), dim=0).bfloat16().to(DEVICE)
    rows = moved(make_case(logits, settings * len(shapes)).rows(), DEVICE)
    # The interpreter cannot bear many programs.
    tiling = kernels.Tiling() if DEVICE == "cuda" else kernels.Tiling(block=2**14, splits=(8,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        sampled = kernels.gumbel_sample_triton(logits, rows, tiling=tiling)
    expected = gumbel_sample_reference(logits, rows)
    assert sampled.token_ids.tolist() == expected.token_ids.tolist()
    [limits] = found
    assert (limits.num_near >= 0).all(), limits.num_near.tolist()


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [1, 3, 32, NUM_ROWS])
def test_large_rows_take_the_tokens_of_the_reference(num_rows: int) -> None:
    case = large_case(num_rows, num_rows)
    logits, rows = case.logits.cuda(), moved(case.rows(), "cuda")
    wanted = {"with_logprobs": True, "with_margins": True}
    with poisoned_memory():
        sampled = gumbel_sample(logits, rows, **wanted)
    expected = gumbel_sample_reference(logits, rows, **wanted)
    assert torch.equal(sampled.token_ids, expected.token_ids)
    assert torch.equal(sampled.is_invalid, expected.is_invalid)
    assert torch.equal(sampled.ranks, expected.ranks)
    torch.testing.assert_close(sampled.logprobs, expected.logprobs, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(sampled.margins, expected.margins, atol=1e-4, rtol=1e-5)


@pytest.mark.gpu
def test_large_rows_take_the_tokens_of_the_pipeline() -> None:
    case = large_case(5, 12)
    assert_same(
        gumbel_sample(case.logits.cuda(), moved(case.rows(), "cuda"), with_logprobs=True),
        case.expected(),
    )


@pytest.mark.gpu
def test_a_graph_is_replayed_over_other_requests() -> None:
    first, later = large_case(1, 16), large_case(2, 16)
    rows, logits = moved(first.rows(), "cuda"), first.logits.cuda()
    others = moved(later.rows(), "cuda")
    gumbel_sample(logits, rows)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sampled = gumbel_sample(logits, rows)
    logits.copy_(later.logits)
    for name in ("slots", "num_tokens", "temperature", "top_k", "top_p", "min_p", "seed"):
        getattr(rows, name).copy_(getattr(others, name))
    for _ in range(2):
        graph.replay()
        expected = gumbel_sample_reference(logits, rows)
        assert torch.equal(sampled.token_ids, expected.token_ids)
