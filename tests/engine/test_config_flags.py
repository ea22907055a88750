"""Flags follow the fields of the configuration, and change only what was said."""

from __future__ import annotations

import argparse
from dataclasses import fields

import pytest

from engine.config import CacheConfig, EngineConfig, SchedulerConfig
from engine.config_flags import add_config_flags, config_from_args
from engine.errors import ConfigError


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_config_flags(parser)
    return parser.parse_args(words)


def config_of(*words: str) -> EngineConfig:
    return config_from_args(parse(*words), None)


def test_no_flags_give_the_defaults() -> None:
    assert config_of() == EngineConfig()


def test_every_setting_has_a_flag_with_its_meaning() -> None:
    parser = argparse.ArgumentParser()
    add_config_flags(parser)
    actions = {action.dest: action for action in parser._actions}
    for section in fields(EngineConfig):
        for field in fields(type(getattr(EngineConfig(), section.name))):
            help_text = actions[field.name].help
            assert help_text is not None
            assert field.metadata["help"] in help_text


def test_flags_reach_their_sections() -> None:
    config = config_of(
        "org/model", "--draft", "org/draft", "--max-num-seqs", "3", "--memory-utilization", "0.5"
    )
    assert config.model.model == "org/model"
    assert config.speculation.draft == "org/draft"
    assert config.scheduler.max_num_seqs == 3
    assert config.cache.memory_utilization == 0.5


def test_booleans_have_a_flag_for_either_value() -> None:
    assert config_of("--no-prefix-caching").cache.prefix_caching is False
    assert config_of("--trust-remote-code").model.trust_remote_code is True


@pytest.mark.parametrize(("text", "count"), [("off", 0), ("3", 3)])
def test_speculation_is_off_or_a_number(text: str, count: int) -> None:
    assert config_of("--draft", "d", "--speculation", text).speculation.max_draft_tokens == count


def test_speculation_auto_is_the_default_and_can_be_named() -> None:
    assert config_of("--speculation", "auto").speculation.is_auto
    assert config_of().speculation.is_auto
    assert not config_of("--speculation", "off").speculation.is_auto


def test_acceptance_rates_are_one_flag() -> None:
    assert config_of("--synthetic-acceptance", "0.8").speculation.acceptance_rates == (0.8,)
    assert config_of("--synthetic-acceptance", "0.9,0.7").speculation.acceptance_rates == (0.9, 0.7)
    assert config_of().speculation.acceptance_rates == ()


def test_values_outside_their_limits_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_num_seqs: 0 is below 1"):
        config_of("--max-num-seqs", "0")


def test_a_flag_that_is_not_given_leaves_the_files_value() -> None:
    base = EngineConfig(scheduler=SchedulerConfig(max_num_seqs=7, max_num_batched_tokens=99))
    config = config_from_args(parse("--max-num-seqs", "8", "--block-size", "32"), base)
    assert config.scheduler == SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=99)
    assert config.cache == CacheConfig(block_size=32)
