"""Our package `kernels` and the other distribution of that name do not meet unnoticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import kernels
from engine.errors import ModelLoadError
from engine.model.kernels_name import check_no_other_kernels
from tests.parity.families import build_family


def install_other_kernels(folder: Path) -> None:
    """Lay down the metadata that an installed distribution called `kernels` has."""
    metadata = folder / "kernels-0.18.2.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n")


def test_says_nothing_without_the_other_distribution() -> None:
    check_no_other_kernels()


def test_names_the_other_distribution_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_other_kernels(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelLoadError, match=r"'kernels' 0\.18\.2 .* pip uninstall kernels"):
        check_no_other_kernels()


def test_start_up_stops_before_transformers_is_imported(tmp_path: Path, root: Path) -> None:
    install_other_kernels(tmp_path)
    script = f"""
import sys
sys.path[:0] = [{str(root)!r}, {str(tmp_path)!r}]
try:
    import engine.model.loader
except Exception as error:
    assert type(error).__name__ == "ModelLoadError", error
    assert "\\n" not in str(error)
    assert "transformers" not in sys.modules
else:
    raise AssertionError("the other distribution was not noticed")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_model_loads_with_our_kernels_first_on_the_path(root: Path, tmp_path: Path) -> None:
    assert Path(kernels.__file__).parent == root / "kernels"
    build_family("llama").save_pretrained(tmp_path)
    script = f"""
import sys
sys.path.insert(0, {str(root)!r})
import kernels, torch
from transformers.utils import is_kernels_available
from engine.model.loader import load_model
assert not is_kernels_available()
load_model({str(tmp_path)!r}, device=torch.device("cpu"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
