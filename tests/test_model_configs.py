"""Every file of `model_configs/` loads, names real models, and is found when installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from engine.config_files import MODEL_CONFIGS, config_names, demo_config, load_config_file

NAMES = config_names()
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def test_there_are_enough_pairs_to_choose_from() -> None:
    assert {"demo", "llama-3.1-8b", "qwen3-8b", "qwen3-32b", "gemma-3-27b", "gpt-oss-20b"} <= set(
        NAMES
    )


@pytest.mark.parametrize("name", NAMES)
def test_file_loads_and_says_where_it_was_tested(name: str) -> None:
    file = load_config_file(name)
    assert file.path == MODEL_CONFIGS / f"{name}.yaml"
    assert file.config.model.model is not None
    assert file.notes
    assert file.tested


@pytest.mark.parametrize("name", [name for name in NAMES if name != "demo"])
def test_public_pairs_are_hub_ids_and_speculate_only_with_a_draft(name: str) -> None:
    config = load_config_file(name).config
    draft = config.speculation.draft
    assert config.model.model is not None
    assert HUB_ID.fullmatch(config.model.model)
    assert draft is None or HUB_ID.fullmatch(draft)
    assert (config.speculation.num_draft_tokens > 0) == (draft is not None)
    assert draft != config.model.model


def test_demo_pair_lies_beside_its_file(demo_pair: tuple[Path, Path]) -> None:
    config = demo_config()
    assert config.model.model == str(demo_pair[0])
    assert config.speculation.draft == str(demo_pair[1])


@pytest.mark.slow
def test_wheel_carries_the_configurations_and_what_bench_needs(root: Path, tmp_path: Path) -> None:
    tree, wheels, site = tmp_path / "tree", tmp_path / "wheels", tmp_path / "site"
    shutil.copytree(root, tree, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info"))
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(wheels), str(tree)]
    subprocess.run(build, check=True, capture_output=True)
    zipfile.ZipFile(next(wheels.glob("outdraft-*.whl"))).extractall(site)
    code = "import engine.config_files as c; print(c.MODEL_CONFIGS, *c.config_names())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [str(site / "model_configs"), *NAMES]
    assert (site / "benchmarks/speculation.py").is_file()
    assert not (site / "benchmarks/results").exists()
