"""Reads a checkpoint's weights straight to where they are used, as fast as its files are read.

Some threads read the files front to back in pieces: into the weights themselves on a CPU, through
pinned memory to a GPU, where copying one piece and reading the next go on at once. Only checkpoints
that need nothing else are read so: plain safetensors whose names and shapes are the model's own.
What must be renamed, merged, dequantised or kept in another dtype is transformers' to load.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from engine.model.empty_model import config_dtype, empty_model
from engine.model.safetensors_files import StoredTensor, stored_tensors

_PIECE_BYTES = 16 * 2**20
_WORKERS = 4
_PIECES_IN_FLIGHT = 2
# Transformers maps files into memory, which larger models have less of to spare.
_MOST_BYTES_ON_CPU = 2**30


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes of a file, and the numbers they become: a flat part of one weight."""

    path: Path
    offset: int
    num_bytes: int
    dtype: torch.dtype
    weight: torch.Tensor


def load_streamed(
    name: str, config: PreTrainedConfig, *, dtype: torch.dtype | str, device: torch.device
) -> PreTrainedModel | None:
    """Load a causal language model whose checkpoint is on this machine, if it is a plain one.

    Args:
        name: folder or hub id.
        config: the checkpoint's own configuration, as it was loaded by that name.
        dtype: of the weights; `auto` = as the configuration says.
        device: where they go.

    Returns:
        None where the checkpoint is not here yet, needs more than reading, or is too large to be
        held beside what a CPU makes of it.

    Raises:
        OSError: a file cannot be read.
        torch.OutOfMemoryError: the weights do not fit on the device.
    """
    folder = _folder(name, config)
    stored = None if folder is None else stored_tensors(folder)
    exact = dtype if isinstance(dtype, torch.dtype) else config_dtype(config)
    is_quantised = getattr(config, "quantization_config", None) is not None
    if folder is None or stored is None or exact is None or is_quantised:
        return None
    is_on_cpu = device.type == "cpu"
    if is_on_cpu and sum(one.num_bytes for one in stored.values()) > _MOST_BYTES_ON_CPU:
        return None
    # A CPU's memory costs nothing until it is written, and outlines make torch import its compiler.
    outline = empty_model(config, dtype=exact, device=device if is_on_cpu else torch.device("meta"))
    if not _is_plain(outline, stored, exact):
        return None
    model = outline if is_on_cpu else empty_model(config, dtype=exact, device=device)
    weights = model.state_dict()
    _stream([piece for name in stored for piece in _pieces(stored[name], weights[name])], device)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(folder))
    return model


def _folder(name: str, config: PreTrainedConfig) -> Path | None:
    if Path(name).is_dir():
        return Path(name)
    commit = getattr(config, "_commit_hash", None)
    found = try_to_load_from_cache(name, "config.json", revision=commit) if commit else None
    return Path(found).parent if isinstance(found, str) else None


def _is_plain(model: PreTrainedModel, stored: dict[str, StoredTensor], dtype: torch.dtype) -> bool:
    """Tell whether the model's weights and the checkpoint's tensors are the same, one for one."""
    own: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    if any(name not in own or own[name].shape != stored[name].shape for name in stored):
        return False
    written = [id(own[name]) for name in stored]
    kept = model._keep_in_fp32_modules or model._keep_in_fp32_modules_strict
    return (
        len(written) == len(set(written))
        and set(written) == {id(weight) for weight in own.values()}
        and all(weight.is_contiguous() for weight in own.values())
        and not (kept and dtype != torch.float32)
        and not any(isinstance(c, WeightConverter) for c in get_model_conversion_mapping(model))
    )


def _pieces(stored: StoredTensor, weight: torch.Tensor) -> Iterator[_Piece]:
    size = stored.dtype.itemsize
    flat, step = weight.detach().view(-1), _PIECE_BYTES // size
    for begin in range(0, flat.numel(), step):
        part = flat[begin : begin + step]
        offset = stored.offset + begin * size
        yield _Piece(stored.path, offset, part.numel() * size, stored.dtype, part)


def _stream(pieces: list[_Piece], device: torch.device) -> None:
    """Write all pieces, in the order in which they lie in their files."""
    if device.type == "cuda":
        # Building the model has left work on its stream, which must not write after the pieces.
        torch.cuda.synchronize(device)
    waiting = iter(sorted(pieces, key=lambda piece: (piece.path, piece.offset)))
    worker = _Worker(waiting, Lock(), device)
    with ThreadPoolExecutor(_WORKERS) as threads:
        for done in [threads.submit(worker.run) for _ in range(_WORKERS)]:
            done.result()


@dataclass(frozen=True, slots=True)
class _Worker:
    """What each thread does: takes the next piece until there is none."""

    waiting: Iterator[_Piece]
    lock: Lock
    device: torch.device

    def run(self) -> None:
        """Write pieces; on a GPU, all of them are there when it returns."""
        if self.device.type == "cuda":
            self._through_pinned_memory()
            return
        for piece in self._taken():
            if piece.dtype == piece.weight.dtype:
                _read(piece, piece.weight)
            else:
                piece.weight.copy_(_read(piece, _room(piece)))

    def _taken(self) -> Iterator[_Piece]:
        while True:
            with self.lock:
                piece = next(self.waiting, None)
            if piece is None:
                return
            yield piece

    def _through_pinned_memory(self) -> None:
        stream = torch.cuda.Stream(self.device)
        shape = (_PIECES_IN_FLIGHT, _PIECE_BYTES)
        rooms = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        copied = [torch.cuda.Event() for _ in rooms]
        with torch.cuda.stream(stream):
            for index, piece in enumerate(self._taken()):
                place = index % _PIECES_IN_FLIGHT
                copied[place].synchronize()
                room = rooms[place, : piece.num_bytes].view(piece.dtype)
                _read(piece, room)
                if piece.dtype != piece.weight.dtype:
                    # Else the cast would be the CPU's, and the room written anew before its copy.
                    room = room.to(self.device, non_blocking=True)
                piece.weight.copy_(room, non_blocking=True)
                copied[place].record(stream)
        stream.synchronize()


def _room(piece: _Piece) -> torch.Tensor:
    return torch.empty(piece.num_bytes, dtype=torch.uint8).view(piece.dtype)


def _read(piece: _Piece, room: torch.Tensor) -> torch.Tensor:
    """Read a piece into memory of its size; returns that memory.

    Raises:
        OSError: the file ends before the piece does.
    """
    view = room.view(torch.uint8).numpy().data
    file = os.open(piece.path, os.O_RDONLY)
    try:
        done = 0
        while done < piece.num_bytes:
            count = os.preadv(file, [view[done:]], piece.offset + done)
            if count == 0:
                raise OSError(f"{piece.path} ends early.")
            done += count
    finally:
        os.close(file)
    return room
