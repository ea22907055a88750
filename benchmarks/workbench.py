"""What small benchmarks start from: flags, one target, and drafters loaded beside it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.drafters import Drafter, LoadedDrafter, load_drafters
from benchmarks.program import add_output_flags
from benchmarks.sweep_flags import add_data_flag, asked_config, numbers
from engine.config import EngineConfig, ModelConfig
from engine.config_files import resolve
from engine.config_flags import add_option_flags
from engine.errors import ConfigError, ContextLengthExceededError, OutdraftError
from engine.model_pair import ModelPair, load_target
from engine.prompts import PromptTokenizer


@dataclass(frozen=True, slots=True)
class Workbench:
    """A target, and what it takes to make lanes of it.

    Attributes:
        config: the settings, the demo pair filled in where no model was named.
        target: the model that all lanes share.
        tokenizer: turns texts into prompts.
        data_dir: where the corpora of the demo pair lie, if they are there.
    """

    config: EngineConfig
    target: ModelPair
    tokenizer: PromptTokenizer
    data_dir: Path

    @property
    def draft_model(self) -> str:
        """The draft model of the settings.

        Raises:
            ConfigError: there is none.
        """
        name = self.config.speculation.draft_model
        if name is None:
            raise ConfigError("draft: this benchmark needs a draft model; give --draft.")
        return name

    def load(self, drafter: Drafter) -> LoadedDrafter:
        """Load a drafter beside the target.

        Raises:
            ModelLoadError: it cannot be loaded.
            DraftMismatchError: its words cannot be understood.
        """
        return load_drafters([drafter], self.config, self.target, _refuse)[0]

    def check_fit(self, num_tokens: int) -> None:
        """Refuse requests that the target has no room for, before anything is measured.

        Raises:
            ContextLengthExceededError: prompt and answer exceed the model's limit.
        """
        limit = self.target.target.max_model_len
        if num_tokens > limit:
            raise ContextLengthExceededError(
                f"prompt and answer of {num_tokens} tokens exceed the model's {limit}; "
                "lower --max-tokens."
            )


def add_workbench_flags(parser: argparse.ArgumentParser, name: str, *, max_tokens: int) -> None:
    """Add `[MODEL]`, the draft, the length of answers, and where results go.

    Args:
        parser: of the program.
        name: of its results.
        max_tokens: of an answer, where nothing is said.
    """
    parser.add_argument("--config", metavar="NAME_OR_FILE", help="settings to start from")
    add_option_flags(parser.add_argument_group("model"), ModelConfig)
    parser.add_argument("--draft", default=argparse.SUPPRESS, help="who drafts, as in serve")
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=max_tokens,
        help=f"tokens of an answer on average (default: {max_tokens})",
    )
    add_data_flag(parser)
    add_output_flags(parser, name)


def add_load_flags(parser: argparse.ArgumentParser, *, concurrency: str, temperatures: str) -> None:
    """Add the loads and temperatures that a program measures, with their defaults."""
    parser.add_argument(
        "--concurrency",
        default=concurrency,
        metavar="N,N",
        help=f"requests in flight (default: {concurrency})",
    )
    parser.add_argument(
        "--temperatures", default=temperatures, metavar="T,T", help=f"default: {temperatures}"
    )


def loads_of(args: argparse.Namespace) -> list[tuple[float, int]]:
    """Give every pair of temperature and requests in flight.

    Raises:
        ConfigError: a value that is no number, or cannot be measured.
    """
    temperatures = numbers("temperatures", args.temperatures, float)
    concurrencies = numbers("concurrency", args.concurrency, int)
    check_at_least("temperatures", min(temperatures, default=-1.0), 0)
    check_at_least("concurrency", min(concurrencies, default=0), 1)
    return [(temperature, load) for temperature in temperatures for load in concurrencies]


def check_at_least(name: str, value: float, low: float) -> None:
    """Refuse a flag's value that is too small to be measured.

    Raises:
        ConfigError: it is.
    """
    if value < low:
        raise ConfigError(f"{name}: {value:g} is below {low:g}.")


def load_workbench(args: argparse.Namespace, console: Console) -> Workbench:
    """Load the target.

    Raises:
        ConfigError: a setting cannot be honoured.
        ModelLoadError: the model cannot be loaded.
    """
    check_at_least("max-tokens", args.max_tokens, 2)
    config = resolve(asked_config(args))
    with console.status("loading the model"):
        target = load_target(config)
        assert config.model.model is not None, "resolve() names a model"
        tokenizer = PromptTokenizer(config.model.model, target.load_tokenizer())
    return Workbench(config, target, tokenizer, args.data_dir)


def _refuse(drafter: Drafter, error: OutdraftError) -> None:
    raise type(error)(f"draft: {drafter.name}: {error}") from error
