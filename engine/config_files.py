"""Reads settings into `EngineConfig`: from YAML files, from flat options, and the demo pair.

It knows the fields of `engine/config.py` (names, types, flags and help come from there), the
folder `model_configs/`, and YAML. It refuses to know the command line, the environment and what
the models are; no torch.

A file has the sections of `EngineConfig` (`model`, `cache`, `scheduler`, `speculation`) and may
say where the pair was tested:

    tested_on: null            # the machine, or null for "not tested"
    notes: One sentence for whoever picks this file.
    model: {model: Qwen/Qwen3-8B, dtype: bfloat16}
    speculation: {draft: Qwen/Qwen3-0.6B, max_draft_tokens: 4}
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from engine.config import EngineConfig, acceptance_text, parse_speculation
from engine.errors import ConfigError

MODEL_CONFIGS = Path(__file__).resolve().parent.parent / "model_configs"
DEMO = "demo"
NOT_TESTED = "not tested"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigOption:
    """One field of the configuration, as flags, files and documents see it.

    Attributes:
        section: the part of `EngineConfig` it belongs to.
        name: the field, as it is called in files and by `LLM`.
        flag: the command-line flag, without its dashes.
        kind: `str`, `int`, `float` or `bool`.
        is_optional: whether None is a value of it.
        default: the value when nothing is said.
        help: its one line of meaning.
        metavar: how its value is written on the command line; may be empty.
    """

    section: str
    name: str
    flag: str
    kind: type
    is_optional: bool
    default: Any
    help: str
    metavar: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFile:
    """A configuration file and what it says of itself.

    Attributes:
        path: where it was read.
        config: the settings.
        tested_on: the machine on which the pair was tested; None = it was not.
        notes: a sentence or two for whoever picks it.
    """

    path: Path
    config: EngineConfig
    tested_on: str | None
    notes: str

    @property
    def tested(self) -> str:
        """The machine on which the pair was tested, or that it was not, in words."""
        return self.tested_on or NOT_TESTED


@cache
def config_options() -> tuple[ConfigOption, ...]:
    """Give every field of every section, in the order of their declaration."""
    return tuple(
        _option(section.name, field, typing.get_type_hints(kind)[field.name])
        for section, kind in _sections()
        for field in fields(kind)
    )


def config_names() -> list[str]:
    """Give the names of the files in `model_configs/`, sorted."""
    return sorted(path.stem for path in MODEL_CONFIGS.glob("*.yaml"))


def load_config(name_or_path: str | Path) -> EngineConfig:
    """Read the settings of a file of `model_configs/` by name, or of any file by path.

    Raises:
        ConfigError: no such file, no YAML, an unknown key, a value of the wrong type or range.
    """
    return load_config_file(name_or_path).config


def load_config_file(name_or_path: str | Path) -> ConfigFile:
    """Read a configuration file with what it says of itself; see `load_config`.

    Relative models (`./target`) are looked up beside the file.

    Raises:
        ConfigError: no such file, no YAML, an unknown key, a value of the wrong type or range.
    """
    path = _find(name_or_path)
    sections = read_yaml(path)
    tested_on = _text(sections.pop("tested_on", None), "tested_on", path)
    notes = _text(sections.pop("notes", None), "notes", path)
    try:
        config = _beside(_build(sections), path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return ConfigFile(path=path, config=config, tested_on=tested_on, notes=notes or "")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of keys and values; nothing in it is nothing said.

    Raises:
        ConfigError: no such file, no YAML, or no keys.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    return _mapping(content if content is not None else {}, str(path))


def write_config_file(path: Path, config: EngineConfig, *, tested_on: str, notes: str) -> None:
    """Write the settings that differ from their defaults, so that `load_config_file` reads them.

    Args:
        path: the file.
        config: the settings.
        tested_on: the machine.
        notes: a sentence or two for whoever picks the file.

    Raises:
        ConfigError: the file cannot be written.
    """
    sections: dict[str, Any] = {}
    for option in config_options():
        value = getattr(getattr(config, option.section), option.name)
        if value != option.default:
            is_off = option.flag == "speculation" and value == 0
            sections.setdefault(option.section, {})[option.name] = "off" if is_off else value
    content = {"tested_on": tested_on, "notes": _Folded(notes), **sections}
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=90, allow_unicode=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}.") from error


def apply_options(config: EngineConfig, options: Mapping[str, Any]) -> EngineConfig:
    """Replace single fields of a configuration, named without their section.

    Args:
        config: what holds for all that `options` does not name.
        options: field or flag name (`max_num_seqs`, `speculation`) to value.

    Raises:
        ConfigError: an unknown name, or a value of the wrong type or range.
    """
    by_name = {option.name: option for option in config_options()}
    by_flag = {option.flag.replace("-", "_"): option for option in config_options()}
    changes: dict[str, dict[str, Any]] = {}
    for name, value in options.items():
        option = by_name.get(name) or by_flag.get(name)
        if option is None:
            raise ConfigError(f"{name}: unknown option; {suggest(name, by_flag)}.")
        changes.setdefault(option.section, {})[option.name] = _read(option, value, name)
    sections = {
        section: replace(getattr(config, section), **values) for section, values in changes.items()
    }
    return replace(config, **sections)


def demo_config() -> EngineConfig:
    """Give the settings of the embedded demo pair.

    Raises:
        ConfigError: the pair is not part of this installation.
    """
    config = load_config(DEMO)
    for folder in (config.model.model, config.speculation.draft):
        if folder is None or not (Path(folder) / "config.json").is_file():
            raise ConfigError(f"the demo pair is not at {folder}; name a model to serve.")
    return config


def resolve(config: EngineConfig) -> EngineConfig:
    """Fill in the demo pair where no model is named.

    A draft that was named is kept, and speculation that was turned off stays off.

    Raises:
        ConfigError: the demo pair is not part of this installation, or what nobody drafts is to
            be accepted.
    """
    resolved = config if config.model.model is not None else _with_demo(config)
    resolved.speculation.check_acceptance()
    return resolved


def _with_demo(config: EngineConfig) -> EngineConfig:
    demo, speculation = demo_config(), config.speculation
    if speculation.draft is None and speculation.max_draft_tokens != 0:
        count = speculation.max_draft_tokens
        speculation = replace(
            speculation,
            draft=demo.speculation.draft,
            max_draft_tokens=demo.speculation.max_draft_tokens if count is None else count,
        )
    model = replace(config.model, model=demo.model.model)
    return replace(config, model=model, speculation=speculation)


def suggest(name: str, valid: Iterable[str]) -> str:
    """Say which valid name is nearest to an unknown one, or which there are."""
    names = sorted(valid)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {nearest[0]!r}" if nearest else f"valid are {', '.join(names)}"


class _StrictLoader(yaml.SafeLoader):
    """YAML with the booleans of version 1.2 (`off` is a word) and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


_StrictLoader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag != "tag:yaml.org,2002:bool" or first in "tTfF"
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Folded(str):
    """A text that is written over several lines."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    """Writes what `_StrictLoader` reads: `off` needs no quotes."""


_Dumper.yaml_implicit_resolvers = _StrictLoader.yaml_implicit_resolvers
_Dumper.add_representer(
    _Folded, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style=">")
)


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path.resolve()
    if path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
        raise ConfigError(f"{path}: no such file.")
    named = MODEL_CONFIGS / f"{path}.yaml"
    if not named.is_file():
        raise ConfigError(f"{path}: no such configuration; {suggest(str(path), config_names())}.")
    return named


def _sections() -> list[tuple[Any, type[Any]]]:
    hints = typing.get_type_hints(EngineConfig)
    return [(field, hints[field.name]) for field in fields(EngineConfig)]


def _option(section: str, field: Any, hint: Any) -> ConfigOption:
    is_optional = isinstance(hint, types.UnionType)
    kind = next(k for k in typing.get_args(hint) if k is not type(None)) if is_optional else hint
    assert field.default is not MISSING, f"{section}.{field.name} needs a default"
    return ConfigOption(
        section=section,
        name=field.name,
        flag=field.metadata["flag"] or field.name.replace("_", "-"),
        kind=kind,
        is_optional=is_optional,
        default=field.default,
        help=field.metadata["help"],
        metavar=field.metadata["metavar"],
    )


def _build(sections: dict[str, Any]) -> EngineConfig:
    built: dict[str, Any] = {}
    kinds = {section.name: kind for section, kind in _sections()}
    for name, content in sections.items():
        if name not in kinds:
            raise ConfigError(f"{name}: unknown key; {_suggest_section(name, kinds)}.")
        options = {o.name: o for o in config_options() if o.section == name}
        values: dict[str, Any] = {}
        for key, value in _mapping(content if content is not None else {}, name).items():
            if key not in options:
                raise ConfigError(f"{name}.{key}: unknown key; {suggest(key, options)}.")
            values[key] = _read(options[key], value, f"{name}.{key}")
        built[name] = kinds[name](**values)
    return EngineConfig(**built)


def _suggest_section(name: str, sections: Iterable[str]) -> str:
    for option in config_options():
        if option.name == name:
            return f"it belongs under {option.section!r}"
    return suggest(name, [*sections, "tested_on", "notes"])


_KIND_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}


def _read(option: ConfigOption, value: Any, where: str) -> Any:
    if option.flag == "speculation" and isinstance(value, str):
        return parse_speculation(value)
    if option.name == "synthetic_acceptance":
        value = _rates_text(value)
    if value is None and option.is_optional:
        return None
    if option.kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not option.kind:
        wanted = _KIND_WORDS[option.kind]
        raise ConfigError(f"{where}: {value!r} is {type(value).__name__}, not {wanted}.")
    return value


def _rates_text(value: Any) -> Any:
    """Write rates that a file or a caller gives as numbers the way the flag takes them."""
    rates = value if isinstance(value, (list, tuple)) else [value]
    is_numbers = all(type(rate) in (int, float) for rate in rates)
    return acceptance_text(rates) if rates and is_numbers else value


def _mapping(content: Any, where: str) -> dict[str, Any]:
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{where}: expected keys with values, not {type(content).__name__}.")
    return dict(content)


def _text(value: Any, key: str, path: Path) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{path}: {key}: {value!r} is {type(value).__name__}, not a text.")
    return value


def _beside(config: EngineConfig, folder: Path) -> EngineConfig:
    """Make models that are written as relative paths absolute."""

    def place(names: str | None) -> str | None:
        if names is None:
            return None
        return ",".join(map(place_one, names.split(",")))

    def place_one(name: str) -> str:
        return str((folder / name).resolve()) if name.startswith(("./", "../")) else name

    return replace(
        config,
        model=replace(config.model, model=place(config.model.model)),
        speculation=replace(config.speculation, draft=place(config.speculation.draft)),
    )
