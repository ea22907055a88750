"""What the packages hand out, and that our `kernels` does not pass for another package."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import engine
import kernels

TINY_LLAMA = """
import kernels
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import is_kernels_available
import torch

assert not is_kernels_available(), "transformers takes our kernels for another package"
config = LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1,
)
torch.manual_seed(0)
model = LlamaForCausalLM(config).eval()
prompt = torch.tensor([[1, 5, 3]])
tokens = model.generate(prompt, max_new_tokens=2, min_new_tokens=2, do_sample=False)
assert tokens.shape == (1, 5)
print(kernels.__file__)
"""


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    """The [project] table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return table


def test_engine_hands_out_what_it_promises() -> None:
    pytest.importorskip("torch")
    for name in engine.__all__:
        assert getattr(engine, name) is not None


def test_engine_refuses_other_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Engine'"):
        _ = engine.Engine


def test_version_stands_once_more_and_is_the_same(project: dict[str, Any]) -> None:
    assert engine.__version__ == project["version"]


def test_console_script_is_there(project: dict[str, Any]) -> None:
    module, function = project["scripts"]["outdraft"].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_constraints_pin_what_the_project_needs(project: dict[str, Any], root: Path) -> None:
    def normal(requirement: str) -> str:
        name = re.match(r"[\w.-]+", requirement)
        assert name is not None
        return re.sub(r"[-_.]+", "-", name[0]).lower()

    lines = (root / "constraints.txt").read_text().splitlines()
    pinned = {normal(line) for line in lines if line and not line.startswith("#")}
    wanted = {normal(r) for r in project["dependencies"]}
    wanted |= {normal(r) for r in project["optional-dependencies"]["dev"]}
    assert wanted <= pinned


def test_kernels_says_its_version_is_none_of_another_package() -> None:
    assert kernels.__version__ == "0.0.0"


def test_version_lies_outside_the_range_in_which_transformers_uses_kernels(
    project: dict[str, Any],
) -> None:
    import_utils = pytest.importorskip("transformers.utils.import_utils")
    version = pytest.importorskip("packaging.version")
    for ours in (project["version"], kernels.__version__):
        accepted = version.parse(import_utils.KERNELS_MIN_VERSION) <= version.parse(ours)
        assert not accepted, f"transformers would import from our kernels at version {ours}"


def test_transformers_runs_a_model_with_our_kernels_first_on_the_path(root: Path) -> None:
    pytest.importorskip("transformers")
    done = subprocess.run(
        [sys.executable, "-c", TINY_LLAMA], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == Path(kernels.__file__).resolve()
