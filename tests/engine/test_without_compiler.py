"""A machine without a C compiler says the same words, by torch's own kernels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from engine.config import ModelConfig
from engine.model.loader import LoadedModel, from_model
from engine.model_pair import compile_if_asked
from kernels.packed_matrix import serves
from tests.tiny_models import generate, greedy, make_core, random_prompts, seeded, tiny_llama

_ROOT = Path(__file__).parents[2]


def words(speculation: int | str) -> list[list[int]]:
    """Answer prompts, some as speculation has it, with models loaded as an engine loads them."""

    def loaded(seed: int) -> LoadedModel:
        model = from_model(tiny_llama(seed))
        compile_if_asked(ModelConfig(), model)
        return model

    core = make_core(loaded(0), loaded(1), speculation=speculation)
    return generate(core, random_prompts(4), [greedy(16), seeded(16, top_p=0.9)] * 2)


def test_words_without_a_compiler_are_those_with_one(tmp_path: Path) -> None:
    """Of float32; what has no C function is computed by torch, in oneDNN's order of weights."""
    program = (
        "import json, torch\n"
        "from kernels.packed_matrix import serves\n"
        "from tests.engine.test_without_compiler import words\n"
        "torch.set_num_threads(1)\n"
        "print(json.dumps({'has_functions': serves(torch.float32), 'words': words(3)}))\n"
    )
    nowhere = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(_ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | nowhere,
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert not told["has_functions"]
    assert told["words"] == words(3) == words("off")
    assert not list(tmp_path.rglob("*.so"))


def test_this_machine_has_what_the_other_lacks() -> None:
    """Otherwise the test above compares nothing."""
    has_compiler = any(
        (Path(folder) / name).is_file()
        for folder in os.environ["PATH"].split(os.pathsep)
        for name in ("cc", "gcc", "clang")
    )
    assert serves(torch.float32) == has_compiler
