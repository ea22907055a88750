"""Configuration files and options: every key is honoured, or refused with the nearest valid one."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from engine.config import EngineConfig, ModelConfig, SpeculationConfig
from engine.config_files import (
    apply_options,
    config_options,
    load_config,
    load_config_file,
    resolve,
    suggest,
    write_config_file,
)
from engine.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    """Write a configuration file."""
    path = folder / "pair.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_field_of_every_section_is_an_option_with_help() -> None:
    num_fields = sum(len(fields(getattr(EngineConfig(), f.name))) for f in fields(EngineConfig))
    options = config_options()
    assert len(options) == num_fields
    assert all(option.help and option.kind in {str, int, float, bool} for option in options)


def test_names_and_flags_are_unique_so_that_options_need_no_section() -> None:
    options = config_options()
    assert len({option.name for option in options}) == len(options)
    assert len({option.flag for option in options}) == len(options)
    assert "speculation" in {option.flag for option in options}


def test_values_land_in_their_section(tmp_path: Path) -> None:
    text = """
    tested_on: one H200
    notes: A note.
    model: {model: org/target, dtype: bfloat16, trust_remote_code: true}
    cache: {kv_cache_memory: 2GiB, memory_utilization: 1}
    scheduler: {max_num_seqs: 8}
    speculation: {draft: org/draft, max_draft_tokens: 3}
    """
    file = load_config_file(write(tmp_path, text))
    assert file.config.model.model == "org/target"
    assert file.config.model.trust_remote_code is True
    assert file.config.cache.kv_cache_memory == "2GiB"
    assert file.config.cache.memory_utilization == 1.0
    assert isinstance(file.config.cache.memory_utilization, float)
    assert file.config.scheduler.max_num_seqs == 8
    assert file.config.speculation.num_draft_tokens == 3
    assert (file.tested, file.notes) == ("one H200", "A note.")


def test_file_without_tested_on_is_not_tested(tmp_path: Path) -> None:
    assert load_config_file(write(tmp_path, "tested_on: null")).tested == "not tested"


def test_empty_file_and_empty_section_are_the_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")) == EngineConfig()
    assert load_config(write(tmp_path, "cache:\n")) == EngineConfig()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("scheduler: {max_num_sequences: 8}", "'max_num_seqs'"),
        ("schedular: {max_num_seqs: 8}", "'scheduler'"),
        ("max_num_seqs: 8", "'scheduler'"),
        ("model: {dtpye: auto}", "'dtype'"),
        ("speculation: {draft_tokens: 2}", "'max_draft_tokens'"),
    ],
)
def test_unknown_key_names_key_file_and_nearest_valid_key(
    tmp_path: Path, text: str, said: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert "unknown key" in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "scheduler: {max_num_seqs: many}",
            "scheduler.max_num_seqs: 'many' is str, not an integer",
        ),
        ("scheduler: {max_num_seqs: 8.0}", "float, not an integer"),
        ("scheduler: {max_num_seqs: true}", "bool, not an integer"),
        ("scheduler: {max_num_seqs: null}", "NoneType, not an integer"),
        ("model: {trust_remote_code: 1}", "int, not true or false"),
        ("model: {trust_remote_code: yes}", "str, not true or false"),
        ("model: {model: 3}", "int, not a text"),
        ("cache: {memory_utilization: high}", "str, not a number"),
        ("cache: {memory_utilization: 1.5}", "outside (0, 1]"),
        ("model: {dtype: float8}", "float8"),
        ("speculation: {synthetic_acceptance: true}", "bool, not a text"),
        ("speculation: {synthetic_acceptance: []}", "list, not a text"),
        ("speculation: {synthetic_acceptance: [0.9, high]}", "list, not a text"),
        ("speculation: {synthetic_acceptance: [0.9, 2]}", "synthetic_acceptance: 2.0 is outside"),
        ("tested_on: 3", "tested_on"),
        ("cache: 3", "cache: expected keys"),
        ("- a list", "expected keys"),
        ("model: {model: a, model: b}", "stands twice"),
        ("model: {", "YAML"),
    ],
)
def test_wrong_values_are_refused_with_key_and_file(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("written", "rates"),
    [
        ("0.8", (0.8,)),
        ("1", (1.0,)),
        ("[0.9, 0.8, 0]", (0.9, 0.8, 0.0)),
        ("'0.9,0.8'", (0.9, 0.8)),
        ("null", ()),
    ],
)
def test_acceptance_rates_are_a_number_a_list_or_a_text(
    tmp_path: Path, written: str, rates: tuple[float, ...]
) -> None:
    config = load_config(write(tmp_path, f"speculation: {{synthetic_acceptance: {written}}}"))
    assert config.speculation.acceptance_rates == rates


def test_off_is_a_word_and_turns_speculation_off(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "speculation: {max_draft_tokens: off}"))
    assert config.speculation.max_draft_tokens == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"speculation": "off"},
        {"speculation": "3", "draft": "ngram,org/draft", "memory_utilization": 0.5},
        {"model": "123", "revision": "off", "dtype": "bfloat16", "prefix_caching": False},
    ],
)
def test_what_is_written_reads_back(tmp_path: Path, options: dict[str, object]) -> None:
    config, path = apply_options(EngineConfig(), options), tmp_path / "new" / "pair.yaml"
    notes = "Measured: 1.5x at one request, \u2265 1x elsewhere; # no comment, " + "word " * 40
    write_config_file(path, config, tested_on="a machine: 2 cores", notes=notes.strip())
    file = load_config_file(path)
    assert file.config == config
    assert (file.tested_on, file.notes) == ("a machine: 2 cores", notes.strip())
    assert max(map(len, path.read_text(encoding="utf-8").splitlines())) <= 100


def test_only_settings_that_differ_are_written(tmp_path: Path) -> None:
    path = tmp_path / "pair.yaml"
    config = apply_options(EngineConfig(), {"speculation": "off"})
    write_config_file(path, config, tested_on="here", notes="Short.")
    assert path.read_text().endswith("speculation:\n  max_draft_tokens: off\n")
    assert "model:" not in path.read_text()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"pair\.yaml: cannot be written"):
        write_config_file(tmp_path / "file/pair.yaml", EngineConfig(), tested_on="", notes="")


def test_relative_models_lie_beside_the_file_and_hub_ids_do_not(tmp_path: Path) -> None:
    text = "model: {model: ./target}\nspeculation: {draft: org/draft}"
    config = load_config(write(tmp_path, text))
    assert config.model.model == str(tmp_path.resolve() / "target")
    assert config.speculation.draft == "org/draft"


def test_unknown_name_offers_the_nearest_configuration() -> None:
    with pytest.raises(ConfigError, match=r"qwen3-8\b.*did you mean 'qwen3-8b'"):
        load_config("qwen3-8")


def test_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        load_config(tmp_path / "nowhere.yaml")


def test_options_replace_single_fields_and_keep_the_rest() -> None:
    base = apply_options(EngineConfig(), {"max_num_seqs": 4, "dtype": "float32"})
    config = apply_options(base, {"draft": "org/draft", "max_num_batched_tokens": 64})
    assert config.model.dtype == "float32"
    assert config.scheduler.max_num_seqs == 4
    assert config.scheduler.max_num_batched_tokens == 64
    assert config.speculation.draft == "org/draft"


@pytest.mark.parametrize(
    ("value", "num_draft_tokens"), [("off", 0), ("5", 5), (5, 5), (0, 0), ("auto", 8), (None, 8)]
)
def test_speculation_is_an_option_by_its_flag(
    value: str | int | None, num_draft_tokens: int
) -> None:
    config = apply_options(EngineConfig(), {"draft": "org/draft", "speculation": value})
    assert config.speculation.num_draft_tokens == num_draft_tokens


def test_unknown_option_names_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match="max_num_seq: unknown option; did you mean 'max_num_seqs'"
    ):
        apply_options(EngineConfig(), {"max_num_seq": 4})


def test_option_of_the_wrong_type_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="threads: '2' is str, not an integer"):
        apply_options(EngineConfig(), {"threads": "2"})


def test_named_model_is_left_alone_by_resolve() -> None:
    config = EngineConfig(model=ModelConfig(model="org/target"))
    assert resolve(config) == config


def test_no_model_becomes_the_demo_pair(demo_pair: tuple[Path, Path]) -> None:
    config = resolve(EngineConfig())
    assert config.model.model == str(demo_pair[0])
    assert config.speculation.draft == str(demo_pair[1])
    assert config.speculation.num_draft_tokens > 0


def test_demo_target_keeps_the_draft_that_was_named(demo_pair: tuple[Path, Path]) -> None:
    config = resolve(EngineConfig(speculation=SpeculationConfig(draft="org/draft")))
    assert config.model.model == str(demo_pair[0])
    assert config.speculation.draft == "org/draft"


def test_demo_target_without_speculation_stays_without(demo_pair: tuple[Path, Path]) -> None:
    config = resolve(EngineConfig(speculation=SpeculationConfig(max_draft_tokens=0)))
    assert config.model.model == str(demo_pair[0])
    assert config.speculation.draft is None
    assert config.speculation.num_draft_tokens == 0


def test_suggest_lists_what_is_valid_when_nothing_is_near() -> None:
    assert suggest("zzz", ["block_size", "dtype"]) == "valid are block_size, dtype"
