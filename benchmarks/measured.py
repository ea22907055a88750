"""Runs the sweep that a command line asks for, from loading the models to the choice."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console

from benchmarks.drafters import Drafter, LoadedDrafter, load_drafters, parse_drafters
from benchmarks.progress import show_progress
from benchmarks.recommendation import Recommendation, recommend
from benchmarks.sweep import Measurement, check_fit, num_points, run_sweep
from benchmarks.sweep_flags import (
    asked_config,
    prompts_from_args,
    sweep_from_args,
    workloads_from_args,
)
from benchmarks.workloads import Workload
from engine.config import EngineConfig
from engine.config_files import resolve
from engine.errors import ConfigError, OutdraftError
from engine.model_pair import ModelPair, load_target
from engine.prompts import PromptTokenizer


@dataclass(frozen=True, slots=True)
class Measured:
    """A sweep that was run.

    Attributes:
        config: the settings of all lanes, the demo pair filled in where no model was named.
        target: the model that all share.
        workloads: the prompts.
        drafters: who was measured.
        measurements: every lane of every point.
        recommendation: what to run.
    """

    config: EngineConfig
    target: ModelPair
    workloads: list[Workload]
    drafters: list[LoadedDrafter]
    measurements: list[Measurement]
    recommendation: Recommendation

    @property
    def chosen(self) -> LoadedDrafter | None:
        """The drafter to run; None = nobody."""
        name = self.recommendation.drafter
        return next((d for d in self.drafters if d.drafter.name == name), None)

    @property
    def draft(self) -> str | None:
        """The drafter to run as `--draft` takes it; None where the settings name it already."""
        return None if self.chosen is None else self.chosen.drafter.draft


def measure(
    args: argparse.Namespace,
    console: Console,
    on_failure: Callable[[Drafter, OutdraftError], None],
) -> Measured:
    """Load the models and run the sweep.

    Args:
        args: of the command line, with the flags of `add_sweep_flags`.
        console: where waiting is shown.
        on_failure: is told of a drafter that cannot be loaded; may raise.

    Raises:
        ConfigError: a setting cannot be honoured, or no drafter is left.
        InvalidRequestError: a prompt cannot be read, or does not fit.
        ModelLoadError: a model cannot be loaded.
    """
    sweep, config = sweep_from_args(args), resolve(asked_config(args))
    drafters, lines = parse_drafters(args.drafts, config), prompts_from_args(args)
    with console.status("loading the models"):
        target = load_target(config)
        assert config.model.model is not None, "resolve() names a model"
        tokenizer = PromptTokenizer(config.model.model, target.load_tokenizer())
        workloads = workloads_from_args(args, lines, tokenizer)
        limits = (config.model.max_model_len, target.target.max_model_len)
        check_fit(sweep, workloads, min(limit for limit in limits if limit is not None))
        loaded = load_drafters(drafters, config, target, on_failure)
    if not loaded:
        raise ConfigError("drafts: none of them can be loaded, so there is nothing to measure.")
    with show_progress(num_points(sweep, len(loaded), len(workloads))) as on_progress:
        points = run_sweep(sweep, loaded, workloads, on_progress)
        measurements = [m for point in points for m in point]
    return Measured(config, target, workloads, loaded, measurements, recommend(measurements))
