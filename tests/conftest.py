"""What every test may ask for: shared data beside the checkout, the demo pair, a GPU."""

from __future__ import annotations

import os
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
NUM_THREADS = 1
HAS_TORCH = find_spec("torch") is not None
# What a GPU machine may lack: the server's libraries, and those that only tests need.
NOT_ON_GPU_MACHINES = {
    "anthropic",
    "fastapi",
    "httptools",
    "httpx",
    "hypothesis",
    "jsonschema",
    "llguidance",
    "matplotlib",
    "msgspec",
    "openai",
    "prometheus_client",
    "pydantic",
    "pydantic_core",
    "starlette",
    "uvicorn",
    "uvloop",
    "zmq",
}


class DemoPair(NamedTuple):
    """The folders of the demo pair's two models."""

    target: Path
    draft: Path


if HAS_TORCH:
    import torch

    if not torch.cuda.is_available():
        # Triton decides when it is imported whether its interpreter runs kernels, and the folders'
        # own conftest files import it before any hook is called.
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_configure() -> None:
    """Keep torch to one thread: the models are tiny, and idle threads would spin."""
    if HAS_TORCH:
        torch.set_num_threads(NUM_THREADS)
        if not torch.cuda.is_available() and find_spec("triton") is not None:
            _let_interpreted_loops_count()


def _let_interpreted_loops_count() -> None:
    """Make the bounds of a kernel's loops integers: numpy 2.4 refuses to read them as Triton does.

    Triton's interpreter keeps a scalar as an array with one entry in one dimension.
    """
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def patch_tensor_and_index(tensor: type, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_tensor_and_index


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip GPU tests, by name, where torch sees no CUDA device."""
    if item.get_closest_marker("gpu") is None:
        return
    if not HAS_TORCH:
        pytest.skip("needs a CUDA device; torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; torch sees none")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Let `pytest -m gpu` pass over files that import a library which is not there, by its name.

    Any other run must not lose tests that way.
    """
    report = yield
    missing = None
    if report.failed and collector.config.option.markexpr == "gpu":
        missing = _missing_library(report.call.excinfo.value)
    if missing is not None:
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"needs {missing}, which is not installed")
    return report


def _missing_library(error: BaseException | None) -> str | None:
    """Give the library whose absence is behind an error, if it is one that may be absent."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name is not None:
            name = error.name.partition(".")[0]
            return name if name in NOT_ON_GPU_MACHINES else None
        error = error.__cause__
    return None


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's top folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Real prompts, traces and models that may lie in `../shared` beside the checkout."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("../shared is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def _cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def own_cache(_cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what is timed and tried in a folder of this run, for all of its tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(_cache_folder))


@pytest.fixture(scope="session")
def demo_pair() -> DemoPair:
    """The embedded target and draft."""
    pair = DemoPair(ROOT / "model_configs/demo/target", ROOT / "model_configs/demo/draft")
    if not (pair.target / "config.json").is_file():
        pytest.skip("model_configs/demo/target is absent")
    return pair
