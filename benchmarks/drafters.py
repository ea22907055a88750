"""Who is measured: drafters as the command line names them, loaded beside one target.

Commas stand between alternatives; a `+` joins drafters that work together, which `--draft` writes
with a comma (`ngram,ngram+org/draft` are two alternatives).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.config import NO_DRAFT, EngineConfig
from engine.errors import ConfigError, OutdraftError
from engine.model_pair import ModelPair, add_draft

WITHOUT_A_FILE = "ngram,suffix"


@dataclass(frozen=True, slots=True)
class Drafter:
    """One alternative.

    Attributes:
        draft: as `--draft` takes it; None where the configuration says it already.
        name: for tables and plots.
    """

    draft: str | None
    name: str

    def configure(self, config: EngineConfig, draft_tokens: int | None = None) -> EngineConfig:
        """Give the settings with this drafter."""
        draft = config.speculation.draft if self.draft is None else self.draft
        speculation = replace(config.speculation, draft=draft, max_draft_tokens=draft_tokens)
        return replace(config, speculation=speculation)


@dataclass(frozen=True, slots=True)
class LoadedDrafter:
    """A drafter that is ready.

    Attributes:
        drafter: which.
        config: all settings, this drafter's among them.
        models: the shared target, and what drafts.
    """

    drafter: Drafter
    config: EngineConfig
    models: ModelPair

    @property
    def is_nobody(self) -> bool:
        """Whether this is the alternative in which nobody drafts."""
        return not self.config.speculation.drafters


def parse_drafters(text: str | None, config: EngineConfig) -> list[Drafter]:
    """Read `--drafts`; nothing means the configuration's draft, or drafters that need no file.

    Raises:
        ConfigError: an empty name, or one alternative twice.
    """
    own = config.speculation.draft
    if text is None and own is not None and own != NO_DRAFT:
        return [Drafter(None, _name(own))]
    words = [word.strip() for word in (WITHOUT_A_FILE if text is None else text).split(",")]
    if "" in words or len(set(words)) < len(words):
        raise ConfigError(f"drafts: {text!r} names an alternative twice, or an empty one.")
    drafts = [word if Path(word).exists() else word.replace("+", ",") for word in words]
    names = [_name(draft) for draft in drafts]
    return [
        Drafter(draft, name if names.count(name) == 1 else draft.replace(",", "+"))
        for draft, name in zip(drafts, names, strict=True)
    ]


def load_drafters(
    drafters: Sequence[Drafter],
    config: EngineConfig,
    target: ModelPair,
    on_failure: Callable[[Drafter, OutdraftError], None],
) -> list[LoadedDrafter]:
    """Load every drafter beside the target.

    Args:
        drafters: whom to load.
        config: settings of all.
        target: the target, already loaded.
        on_failure: is told who could not be loaded and why; may raise.
    """
    loaded = []
    for drafter in drafters:
        try:
            own = drafter.configure(config)
            loaded.append(LoadedDrafter(drafter, own, add_draft(own, target)))
        except OutdraftError as error:
            on_failure(drafter, error)
    return loaded


def _name(draft: str) -> str:
    """Shorten folders to their last part; hub ids stay whole."""
    words = [
        Path(word).resolve().name if Path(word).is_dir() else word for word in draft.split(",")
    ]
    return "+".join(words)
