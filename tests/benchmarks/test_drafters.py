"""Who is measured, as the command line names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.drafters import Drafter, parse_drafters
from engine.config import EngineConfig, SpeculationConfig
from engine.errors import ConfigError

OWN = EngineConfig(speculation=SpeculationConfig(draft="org/own"))


def test_commas_part_alternatives_and_a_plus_joins_one() -> None:
    assert parse_drafters("ngram, org/draft,ngram+org/draft,none", EngineConfig()) == [
        Drafter("ngram", "ngram"),
        Drafter("org/draft", "org/draft"),
        Drafter("ngram,org/draft", "ngram+org/draft"),
        Drafter("none", "none"),
    ]


def test_nothing_means_the_draft_of_the_configuration() -> None:
    (drafter,) = parse_drafters(None, OWN)
    assert drafter == Drafter(None, "org/own")
    assert drafter.configure(OWN).speculation.draft == "org/own"


def test_nothing_means_drafters_without_a_file_where_there_is_no_configuration() -> None:
    assert [d.draft for d in parse_drafters(None, EngineConfig())] == ["ngram", "suffix"]


def test_folders_are_called_by_their_last_part_unless_two_share_it(tmp_path: Path) -> None:
    one, other, lone = tmp_path / "a/draft", tmp_path / "b/draft", tmp_path / "c++"
    for folder in (one, other, lone):
        folder.mkdir(parents=True)
    drafters = parse_drafters(f"{one},{other},{lone},suffix", EngineConfig())
    assert [d.name for d in drafters] == [str(one), str(other), "c++", "suffix"]
    assert drafters[2].draft == str(lone)


@pytest.mark.parametrize("text", ["", "ngram,,suffix", "ngram,ngram"])
def test_empty_and_repeated_names_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="drafts"):
        parse_drafters(text, EngineConfig())
