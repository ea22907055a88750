"""Puts the decode loop of an engine together, where its settings ask for one."""

from __future__ import annotations

import torch

from engine.config import AUTO, EAGER, FULL, LAZY, MAX_ACCEPTANCE_RATES, OFF, EngineConfig
from engine.errors import ConfigError
from engine.runner.decode_loop import DecodeLoop
from engine.runner.device_pass import DevicePass
from engine.runner.device_queue import DeviceQueue, queue_for
from engine.runner.graphs import CudaGraphs, Graphs, NoGraphs
from engine.runner.model_runner import ModelRunner
from engine.runner.sampling_state import SamplingState
from engine.sampling_params import MAX_DRAFT_TOKENS
from kernels.decode_state import Dice, allocate_decode_state


def decodes_ahead(config: EngineConfig, device: torch.device) -> bool:
    """Whether an engine on a device runs a decode loop.

    Raises:
        ConfigError: it does not, and graphs are asked for by name, which only a loop has.
    """
    wanted, graphs = config.runner.decode_ahead, config.runner.graphs
    is_ahead = device.type == "cuda" if wanted == AUTO else wanted != OFF
    if not is_ahead and graphs in (LAZY, FULL):
        raise ConfigError(
            f"graphs: {graphs} needs --decode-ahead on and a CUDA device; decode_ahead is {wanted} "
            f"here, on {device.type}."
        )
    return is_ahead


def graphs_for(config: EngineConfig, device: torch.device) -> Graphs:
    """Give what the passes of a loop are run by.

    Raises:
        ConfigError: graphs are asked for by name, and there is no CUDA device.
    """
    wanted = config.runner.graphs
    if device.type == "cuda" and wanted != EAGER:
        return CudaGraphs(device)
    if wanted in (LAZY, FULL):
        raise ConfigError(f"graphs: {wanted} needs a CUDA device, and this is {device}.")
    return NoGraphs()


def make_decode_loop(
    config: EngineConfig,
    target: ModelRunner,
    draft: ModelRunner | None,
    *,
    max_model_len: int,
    queue: DeviceQueue | None = None,
    graphs: Graphs | None = None,
) -> DecodeLoop:
    """Make a loop over models' storages.

    Args:
        config: all settings.
        target: of the model that verifies.
        draft: of a model that drafts in the target's vocabulary; over the target's own storage, if
            it is some of its layers; None = nobody does.
        max_model_len: tokens of a request at most.
        queue: None = that of the device.
        graphs: None = what the settings say.
    """
    device = target.loaded.device
    queue = queue or queue_for(device)
    graphs = graphs or graphs_for(config, device)
    num_seqs = config.scheduler.max_num_seqs
    max_blocks = -(-max_model_len // target.storage.block_size)
    state = allocate_decode_state(num_seqs, MAX_DRAFT_TOKENS, max_blocks, device)
    vocab_size = target.loaded.vocab_size
    sampling = SamplingState(num_seqs + 1, vocab_size, device, queue)
    dice = _make_dice(config, sampling, device)
    # The first draft pass has two rows of each request that decodes, beside the prompts.
    max_rows = 2 * num_seqs + config.scheduler.step_tokens
    passes = [
        DevicePass(
            runner,
            state,
            sampling,
            queue,
            graphs,
            max_rows=max_rows,
            max_seq_len=max_model_len,
            vocab_size=vocab_size,
            verifies=runner is target,
            dice=dice,
        )
        for runner in (target, draft)
        if runner is not None
    ]
    loop = DecodeLoop(
        state,
        sampling,
        queue,
        passes[0],
        passes[1] if draft is not None else None,
        draft_lags=draft is not None and draft.storage is not target.storage,
        draft_max_len=max_model_len if draft is None else draft.loaded.max_model_len,
    )
    if config.runner.graphs == FULL:
        loop.record(config.speculation.num_draft_tokens)
    return loop


def _make_dice(config: EngineConfig, sampling: SamplingState, device: torch.device) -> Dice | None:
    rates = config.speculation.acceptance_rates
    if not rates:
        return None
    # Other rates may be set later, for as many places as there can be.
    padded = [*rates, *[rates[-1]] * (MAX_ACCEPTANCE_RATES - len(rates))]
    held = torch.tensor(padded, dtype=torch.float64, device=device)
    return Dice(sampling.seeds, sampling.choices, held)
