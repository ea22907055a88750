"""Settings are checked where they are made, with the number that broke the limit."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from engine.config import (
    AUTO_MAX_DRAFT_TOKENS,
    CacheConfig,
    EngineConfig,
    ModelConfig,
    SchedulerConfig,
    SpeculationConfig,
    acceptance_text,
    parse_acceptance,
    parse_bytes,
    parse_speculation,
)
from engine.errors import ConfigError


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (ModelConfig, {"dtype": "int8"}, "dtype: 'int8' is not one of auto"),
        (ModelConfig, {"max_model_len": 1}, "max_model_len: 1 is below 2"),
        (ModelConfig, {"threads": 0}, "threads: 0 is below 1"),
        (CacheConfig, {"block_size": 0}, "block_size: 0 is below 1"),
        (CacheConfig, {"memory_utilization": 0.0}, r"memory_utilization: 0.0 is outside \(0, 1\]"),
        (CacheConfig, {"memory_utilization": 1.1}, "1.1 is outside"),
        (CacheConfig, {"kv_cache_memory": "lots"}, "kv_cache_memory: 'lots' is no size"),
        (SchedulerConfig, {"max_num_seqs": 0}, "max_num_seqs: 0 is below 1"),
        (SchedulerConfig, {"max_num_batched_tokens": 0}, "max_num_batched_tokens: 0"),
        (SchedulerConfig, {"priority_ageing_s": 0.0}, "priority_ageing_s: 0.0 must exceed 0"),
        (SchedulerConfig, {"background_slowdown": -0.1}, "background_slowdown: -0.1 is no share"),
        (SchedulerConfig, {"background_slowdown": float("nan")}, "background_slowdown: nan"),
        (SpeculationConfig, {"max_draft_tokens": -1}, "max_draft_tokens: -1 is below 0"),
        (SpeculationConfig, {"max_draft_tokens": 33}, "max_draft_tokens: 33 exceeds 32"),
        (SpeculationConfig, {"synthetic_acceptance": "1.5"}, r"1.5 is outside \[0, 1\]"),
        (SpeculationConfig, {"synthetic_acceptance": "0.9,-0.1"}, "synthetic_acceptance: -0.1 is"),
        (SpeculationConfig, {"synthetic_acceptance": "nan"}, "synthetic_acceptance: nan is outs"),
        (SpeculationConfig, {"synthetic_acceptance": "often"}, "'often' is neither a number nor"),
        (SpeculationConfig, {"synthetic_acceptance": "0.9,"}, "'0.9,' is neither a number nor"),
        (SpeculationConfig, {"synthetic_acceptance": ""}, "synthetic_acceptance: '' is neither"),
        (
            SpeculationConfig,
            {"synthetic_acceptance": ",".join(["1"] * 33)},
            "synthetic_acceptance: 33 rates exceed 32",
        ),
    ],
)
def test_value_outside_its_limits_is_refused_with_the_number(
    kind: type[Any], values: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        kind(**values)


@pytest.mark.parametrize(
    ("text", "rates"),
    [(None, ()), ("0.8", (0.8,)), ("0.9, 0.8,1", (0.9, 0.8, 1.0)), ("0", (0.0,))],
)
def test_acceptance_rates_are_read(text: str | None, rates: tuple[float, ...]) -> None:
    assert SpeculationConfig(synthetic_acceptance=text).acceptance_rates == rates
    assert not rates or parse_acceptance(acceptance_text(rates)) == rates


def test_settings_cannot_be_changed_later() -> None:
    with pytest.raises(FrozenInstanceError):
        CacheConfig().block_size = 8  # type: ignore[misc]


@pytest.mark.parametrize(
    ("draft", "max_draft_tokens", "expected"),
    [
        (None, None, 0),
        ("org/draft", None, AUTO_MAX_DRAFT_TOKENS),
        ("org/draft", 0, 0),
        ("org/draft", 7, 7),
        (None, 3, 3),
    ],
)
def test_draft_tokens_after_defaults(
    draft: str | None, max_draft_tokens: int | None, expected: int
) -> None:
    config = SpeculationConfig(draft=draft, max_draft_tokens=max_draft_tokens)
    assert config.num_draft_tokens == expected


def test_token_budget_must_hold_one_verify_pass() -> None:
    speculation = SpeculationConfig(draft="org/draft", max_draft_tokens=8)
    with pytest.raises(ConfigError, match="max_num_batched_tokens: 8 cannot hold one .* 9 tokens"):
        EngineConfig(scheduler=SchedulerConfig(max_num_batched_tokens=8), speculation=speculation)
    EngineConfig(scheduler=SchedulerConfig(max_num_batched_tokens=9), speculation=speculation)


@pytest.mark.parametrize(("text", "expected"), [("off", 0), ("0", 0), ("5", 5), ("auto", None)])
def test_speculation_is_off_or_auto_or_a_number(text: str, expected: int | None) -> None:
    assert parse_speculation(text) == expected


@pytest.mark.parametrize("text", ["on", "-1", "2.5", ""])
def test_other_speculation_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="neither 'off', 'auto' nor a number"):
        parse_speculation(text)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("1024", 1024),
        ("10B", 10),
        ("1KB", 1000),
        ("512MiB", 512 * 2**20),
        ("1.5 GiB", 3 * 2**29),
        ("4gb", 4 * 10**9),
        (" 2TiB ", 2 * 2**40),
    ],
)
def test_sizes_are_read_with_their_unit(text: str, num_bytes: int) -> None:
    assert parse_bytes("kv_cache_memory", text) == num_bytes


@pytest.mark.parametrize("text", ["", "GiB", "4GiBit", "four", "4XB", "inf", "nan", "1e400"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no size"):
        parse_bytes("kv_cache_memory", text)


@pytest.mark.parametrize("text", ["0", "-1GiB", "0.1B"])
def test_sizes_must_exceed_zero(text: str) -> None:
    with pytest.raises(ConfigError, match="must exceed 0"):
        parse_bytes("kv_cache_memory", text)


def test_tokens_of_a_step_follow_the_device_unless_they_are_given() -> None:
    assert EngineConfig().on_device("cpu").scheduler.step_tokens == 512
    assert EngineConfig().on_device("cuda").scheduler.step_tokens == 2048
    given = EngineConfig(scheduler=SchedulerConfig(max_num_batched_tokens=7))
    assert given.on_device("cpu") == given
