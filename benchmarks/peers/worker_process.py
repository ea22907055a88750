"""A peer's worker as its comparison sees it: started, asked, watched, stopped.

Workers that are not asked are blocked on stdin, and stopped by a signal besides, since a peer's
threads may spin or poll where they wait. `cpu_seconds` of the whole process tree proves it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.peers.environment import preloaded_by, python_of
from benchmarks.peers.process_tree import ProcessTree
from benchmarks.peers.protocol import Answers, Load, Loaded, Run
from benchmarks.peers.ways import OURS, Way
from engine.errors import ConfigError, EngineError

ROOT = Path(__file__).resolve().parents[2]
_TAIL_LINES = 12
_STOP_S = 20


def variables_of(threads: int) -> dict[str, str]:
    """Give what is set for every worker: threads are counted, and sleep where they wait."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        # vLLM's: its engine in the worker's own process, threads counted as above, 1 GiB of cache.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }


def command_of(way: Way, folder: Path, threads: int) -> tuple[list[str], dict[str, str]]:
    """Give the words that start a way's worker, and what is set in its process environment.

    Raises:
        ConfigError: the peer has no environment.
    """
    variables = variables_of(threads)
    variables["PYTHONPATH"] = str(ROOT)
    python = Path(sys.executable)
    if way.peer != OURS:
        python = python_of(way.peer, folder)
        if preloaded := preloaded_by(way.peer, folder):
            variables["LD_PRELOAD"] = preloaded
    return [str(python), "-m", f"benchmarks.peers.workers.{way.module}"], variables


class WorkerProcess:
    """A worker; use it as a context manager.

    Args:
        label: of its way, for errors.
        words: that start it.
        variables: added to the process environment.
    """

    def __init__(self, label: str, words: Sequence[str], variables: dict[str, str]) -> None:
        self.label = label
        log, name = tempfile.mkstemp(prefix="outdraft-peer-", suffix=".log")
        self._log = Path(name)
        self._process = subprocess.Popen(
            list(words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=ROOT,
            env=os.environ | variables,
            encoding="utf-8",
        )
        os.close(log)
        self._tree = ProcessTree(self._process)

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def load(self, load: Load) -> Loaded:
        """Let it load.

        Raises:
            EngineError: it cannot.
        """
        return Loaded(**self._ask("load", asdict(load)))

    def run(self, run: Run) -> Answers:
        """Let it answer, and wait.

        Raises:
            EngineError: it cannot, or an answer has another length than was asked for.
        """
        answers = Answers(**self._ask("run", asdict(run)))
        lengths = [len(answer) for answer in answers.token_ids]
        if lengths != [run.max_tokens] * len(run.prompts):
            raise EngineError(
                f"{self.label}: answers have {sorted(set(lengths))} tokens in {len(lengths)} "
                f"answers; {run.max_tokens} in {len(run.prompts)} were asked for."
            )
        return answers

    def pause(self) -> None:
        """Stop it and all below it where they are, until `go_on`."""
        self._tree.pause()

    def go_on(self) -> None:
        """Let it go on."""
        self._tree.go_on()

    def cpu_seconds(self) -> float:
        """Give the processor time that its process and all below it have used."""
        return self._tree.cpu_seconds()

    def stop(self) -> None:
        """Close its stdin and wait; end it where that does not end it."""
        tree = self._tree.members()
        self.go_on()
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(_STOP_S)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        for process in tree:
            if process.is_running():
                process.kill()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.unlink()

    def _ask(self, verb: str, words: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": verb, **words}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise EngineError(self._said("it ended")) from None
        line = self._process.stdout.readline()
        if not line:
            raise EngineError(self._said("it ended"))
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise EngineError(self._said(reply["error"]))
        content: dict[str, Any] = reply["ok"]
        return content

    def _said(self, what: str) -> str:
        """Give an error with the end of what the worker wrote to stderr."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join([f"{self.label}: {what}", *lines[-_TAIL_LINES:]])


def start(way: Way, folder: Path, threads: int) -> WorkerProcess:
    """Start a way's worker, with nothing loaded.

    Raises:
        ConfigError: the peer has no environment, or its Python cannot be started.
    """
    words, variables = command_of(way, folder, threads)
    try:
        return WorkerProcess(way.label, words, variables)
    except OSError as error:
        raise ConfigError(f"peers: {way.label} cannot be started: {error}") from error
