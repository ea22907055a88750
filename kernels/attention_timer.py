"""Times a call on a CUDA device, launched as its passes are launched."""

from __future__ import annotations

from collections.abc import Callable

import torch

_NUM_CALLS = 10
_NUM_ROUNDS = 5


def time_call(call: Callable[[], torch.Tensor], *, is_recorded: bool) -> float:
    """Give the seconds of a call, the median of a few rounds.

    Args:
        call: the call.
        is_recorded: whether it is replayed as a graph, as passes are; otherwise the host's launches
            would be timed. What cannot be recorded fails here.

    Raises:
        RuntimeError: the call cannot be recorded.
    """
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    launch = _repeated(call)
    if is_recorded:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            launch()
        launch = graph.replay
        launch()
    rounds = sorted(_seconds(launch) for _ in range(_NUM_ROUNDS))
    return rounds[_NUM_ROUNDS // 2] / _NUM_CALLS


def _repeated(call: Callable[[], torch.Tensor]) -> Callable[[], None]:
    def launch() -> None:
        for _ in range(_NUM_CALLS):
            call()

    return launch


def _seconds(launch: Callable[[], None]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    launch()
    end.record()
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / 1000
