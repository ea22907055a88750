"""An engine in its own process starts lean, and can do afterwards what it left out."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType

import pytest
import torch

import engine.core
from engine.client import own_process
from engine.config import EngineConfig, ModelConfig
from engine.model import lean_imports
from engine.uncollected import uncollected
from kernels import native_library, paged_attention_cpu, rms_norm_cpu
from tests.parity.families import build_family

ROOT = Path(__file__).resolve().parent.parent.parent
START = """
import sys
from engine.client.own_process import make_core
from engine.config import EngineConfig, ModelConfig

core = make_core(EngineConfig(model=ModelConfig(model=sys.argv[1], device="cpu")))
from tests.tiny_models import generate, greedy
words = generate(core, [[1, 2, 3]], greedy(4))
assert len(words[0]) == 4, words
heavy = {"sympy", "torch._dynamo", "torch._inductor", "torch.distributed.tensor"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
import torch
assert torch.distributed.is_available()
doubled = torch.compile(lambda x: x * 2, backend="eager", fullgraph=True)
assert doubled(torch.ones(2)).tolist() == [2.0, 2.0]
from torch._dynamo import _trace_wrapped_higher_order_op
"""


def test_it_writes_without_the_compiler_and_finds_it_later(tmp_path: Path) -> None:
    build_family("qwen3").save_pretrained(tmp_path)
    command = [sys.executable, "-c", START, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("device", "has_cuda", "compiles", "compiles_c", "is_lean"),
    [
        ("auto", False, "auto", True, True),
        ("auto", False, "on", True, False),
        ("auto", True, "off", False, False),
        ("cpu", True, "auto", True, True),
    ],
)
def test_it_is_lean_where_nothing_is_compiled(
    device: str,
    has_cuda: bool,
    compiles: str,
    compiles_c: bool,
    is_lean: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = []

    @contextmanager
    def lean() -> Iterator[None]:
        done.append("lean")
        yield

    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(own_process, "uncollected", nullcontext)
    monkeypatch.setattr(own_process, "lean_imports", lean)
    monkeypatch.setattr(own_process, "compile_all", lambda: done.append("C"))
    monkeypatch.setattr(engine.core, "EngineCore", lambda config: config)
    config = EngineConfig(model=ModelConfig(device=device, compile=compiles))
    assert own_process.make_core(config) is config
    for thread in threading.enumerate():
        if thread.name == "native-compiler":
            thread.join()
    assert sorted(done) == ["C"] * compiles_c + ["lean"] * is_lean


def test_marks_give_functions_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    monkeypatch.setitem(vars(torch), "_dynamo", None)
    is_available = torch.distributed.is_available
    with lean_imports.lean_imports():
        assert torch.compiler.disable(len) is len
        assert torch.compiler.disable(recursive=False)(len) is len
        assert not torch.distributed.is_available()
    assert torch.distributed.is_available is is_available
    assert "torch._dynamo" not in sys.modules


def test_a_compiler_that_is_there_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ModuleType("torch._dynamo")
    monkeypatch.setitem(sys.modules, "torch._dynamo", real)
    with lean_imports.lean_imports():
        assert sys.modules["torch._dynamo"] is real
    assert sys.modules["torch._dynamo"] is real


def test_what_is_imported_is_left_out_of_later_collections() -> None:
    try:
        with uncollected():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_a_collector_that_rests_goes_on_resting() -> None:
    gc.disable()
    try:
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.unfreeze()
        gc.enable()


def test_all_c_files_of_the_kernels_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(native_library, "native_library", asked.append)
    native_library.compile_all()
    assert {rms_norm_cpu.SOURCE, paged_attention_cpu.SOURCE} <= set(asked)


def test_who_asks_while_another_thread_compiles_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "answer.c"
    source.write_text("int answer(void) { return 42; }")
    compiled = []

    def slowly(source: Path, compiler: str, target: Path) -> None:
        compiled.append(source.name)
        time.sleep(0.05)
        compile_one(source, compiler, target)

    compile_one = native_library._compile
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native_library, "_compile", slowly)
    with ThreadPoolExecutor(2) as threads:
        libraries = list(threads.map(native_library.native_library, [source, source]))
    if None in libraries:
        pytest.skip("this machine has no C compiler")
    assert [library.answer() for library in libraries if library] == [42, 42]
    assert compiled == ["answer.c"]
