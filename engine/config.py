"""Every setting of the engine: one frozen dataclass per concern, no torch.

A field carries its unit and meaning as metadata, once; command-line flags, YAML files and
documentation are derived from these fields (`engine/config_files.py`, `server/cli`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from engine.errors import ConfigError

DTYPES = ("auto", "float32", "bfloat16", "float16")
AUTO_MAX_DRAFT_TOKENS = 8
NO_DRAFT = "none"
TOKEN_DRAFTERS = ("ngram", "suffix")
LAYER_SKIP = "layer-skip"
SHAPE_PREFIX = "shape:"
TLI, SLEM, SAME_VOCABULARY = "tli", "slem", "same"
VOCABULARIES = ("auto", TLI, SLEM, SAME_VOCABULARY)
MAX_ACCEPTANCE_RATES = 32
AUTO = "auto"
EAGER, LAZY, FULL = "eager", "lazy", "full"
GRAPHS = (AUTO, EAGER, LAZY, FULL)
ON, OFF = "on", "off"
SWITCHES = (AUTO, ON, OFF)
STEP_TOKENS, STEP_TOKENS_OF_CPU = 2048, 512
NONE, INT8 = "none", "int8"
QUANTIZATIONS = (NONE, INT8)
ATTENTION_BACKENDS = (AUTO, "triton", "torch", "flashinfer")


def option(
    default: Any,
    help_text: str,
    *,
    flag: str | None = None,
    metavar: str = "",
    is_secret: bool = False,
) -> Any:
    """Declare a configuration field: its default, its one line of meaning, its flag's name.

    A secret is no part of what a configuration is printed as.
    """
    metadata = {"help": help_text, "flag": flag, "metavar": metavar, "is_secret": is_secret}
    return field(default=default, repr=not is_secret, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which target model is served, and how it is held."""

    model: str | None = option(
        None,
        "hub id or local folder; none = the demo pair; "
        f"{SHAPE_PREFIX}NAME = random weights of a shape in model_configs/shapes, no tokenizer",
    )
    revision: str | None = option(None, "branch, tag or commit of a hub id")
    dtype: str = option("auto", f"one of {', '.join(DTYPES)}; auto = float32 on CPU")
    device: str = option("auto", "torch device; auto = cuda where there is one, else cpu")
    max_model_len: int | None = option(
        None, "prompt and answer tokens at most; none = the model's own limit"
    )
    trust_remote_code: bool = option(False, "run Python code that comes with the checkpoint")
    allow_pickle: bool = option(
        False,
        "load checkpoints in pickle's format (.bin), which can run code; off = safetensors only",
    )
    quantization: str = option(
        NONE,
        "int8 = linear layers of target and draft hold weights of 8 bits, on a CPU: faster and "
        "smaller, and the words change a little",
        metavar="none|int8",
    )
    load_weights: bool = option(True, "off = random weights at the checkpoint's shapes")
    fuse_projections: bool = option(
        True, "compute projections that read the same input (q/k/v, gate/up) as one product"
    )
    native_layers: bool = option(
        True, "on a CPU, run models with decoder layers of the usual kind by a C function"
    )
    threads: int | None = option(None, "CPU threads of the engine; none = one per physical core")
    compile: str = option(
        "auto",
        "on = decoder layers are compiled by torch.compile, or the model is refused; off = they "
        "are not; auto = on CUDA they are, if they can be",
        metavar="auto|on|off",
    )

    def __post_init__(self) -> None:
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("quantization", self.quantization, QUANTIZATIONS)
        _one_of("compile", self.compile, SWITCHES)
        _at_least("max_model_len", self.max_model_len, 2)
        _at_least("threads", self.threads, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """How the paged KV cache is sized and shared."""

    block_size: int = option(16, "tokens per KV cache block")
    kv_cache_memory: str | None = option(
        None, "KV cache size, e.g. 512MiB or 4GiB; none = what is free after loading"
    )
    memory_utilization: float = option(0.9, "share of device memory that may be used, 0 to 1")
    prefix_caching: bool = option(True, "reuse the blocks of equal prompt beginnings")

    def __post_init__(self) -> None:
        _at_least("block_size", self.block_size, 1)
        if not 0.0 < self.memory_utilization <= 1.0:
            raise ConfigError(f"memory_utilization: {self.memory_utilization} is outside (0, 1].")
        if self.kv_cache_memory is not None:
            parse_bytes("kv_cache_memory", self.kv_cache_memory)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """How much one step may compute, and who comes first."""

    max_num_seqs: int = option(64, "requests that run at once at most")
    max_num_batched_tokens: int | None = option(
        None,
        f"tokens computed per step at most; none = {STEP_TOKENS_OF_CPU} on a CPU, where a longer "
        f"step would hold up answers for too long, {STEP_TOKENS} elsewhere",
    )
    priority_ageing_s: float = option(30.0, "seconds of waiting that are worth one priority level")
    background_slowdown: float = option(
        0.1,
        "share by which background work may lengthen a step with other requests in it; 0 = it runs "
        "only while there are none",
    )

    def __post_init__(self) -> None:
        _at_least("max_num_seqs", self.max_num_seqs, 1)
        _at_least("max_num_batched_tokens", self.max_num_batched_tokens, 1)
        if self.priority_ageing_s <= 0.0:
            raise ConfigError(f"priority_ageing_s: {self.priority_ageing_s} must exceed 0.")
        if not 0.0 <= self.background_slowdown < math.inf:
            raise ConfigError(
                f"background_slowdown: {self.background_slowdown} is no share from 0 upwards."
            )

    @property
    def step_tokens(self) -> int:
        """Tokens per step, once it is known on what device; see `EngineConfig.on_device`."""
        assert self.max_num_batched_tokens is not None, "a core settles this first"
        return self.max_num_batched_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationConfig:
    """Who drafts, and how many tokens at a time."""

    draft: str | None = option(
        None,
        f"who drafts: a draft model (hub id or local folder), {LAYER_SKIP} (some of the target's "
        f"own layers), {', '.join(TOKEN_DRAFTERS)}, {NO_DRAFT}, or several with commas between, "
        "of whom each request takes whoever promises most in each step",
    )
    draft_revision: str | None = option(None, "branch, tag or commit of the draft's hub id")
    draft_vocabulary: str = option(
        "auto",
        "how a draft model of another vocabulary is understood: tli = by common tokens, slem = as "
        "text, same = not at all; auto = tli where enough tokens are common, else slem",
    )
    max_draft_tokens: int | None = option(
        None,
        "draft tokens per pass: auto (none) lets measured costs and chances decide for each "
        f"request and step, up to {AUTO_MAX_DRAFT_TOKENS}; off (0) is plain decoding",
        flag="speculation",
        metavar="off|auto|N",
    )
    synthetic_acceptance: str | None = option(
        None,
        "for benchmarks, and what is written is not the target's: the chance that a draft is "
        "accepted if all before it were, 0 to 1; one for all positions or one for each with commas "
        "between, the last for all beyond; none = drafts are verified",
        metavar="RATES",
    )

    def __post_init__(self) -> None:
        self._check_drafters()
        if self.synthetic_acceptance is not None:
            parse_acceptance(self.synthetic_acceptance)
        if self.draft_vocabulary not in VOCABULARIES:
            raise ConfigError(
                f"draft_vocabulary: {self.draft_vocabulary!r} is not one of "
                f"{', '.join(VOCABULARIES)}."
            )
        _at_least("max_draft_tokens", self.max_draft_tokens, 0)
        if self.max_draft_tokens and self.max_draft_tokens > 32:
            raise ConfigError(
                f"max_draft_tokens: {self.max_draft_tokens} exceeds 32; "
                "longer drafts are never accepted often enough to pay."
            )

    @property
    def drafters(self) -> tuple[str, ...]:
        """Who drafts, in the order in which they are asked."""
        if self.draft is None or self.draft == NO_DRAFT:
            return ()
        return tuple(name.strip() for name in self.draft.split(","))

    @property
    def draft_model(self) -> str | None:
        """The draft model among the drafters, if there is one."""
        without_one = (*TOKEN_DRAFTERS, LAYER_SKIP)
        return next((name for name in self.drafters if name not in without_one), None)

    @property
    def skips_layers(self) -> bool:
        """Whether the target drafts for itself with some of its layers."""
        return LAYER_SKIP in self.drafters

    @property
    def is_auto(self) -> bool:
        """Whether numbers of drafts choose themselves."""
        return self.max_draft_tokens is None

    @property
    def is_off(self) -> bool:
        """Whether nothing drafts at all, also where drafts would cost no draft pass."""
        return self.max_draft_tokens == 0

    @property
    def num_draft_tokens(self) -> int:
        """Draft tokens per pass at most, after defaults: 0 means that nobody is there to draft."""
        if self.max_draft_tokens is None:
            return AUTO_MAX_DRAFT_TOKENS if self.drafters else 0
        return self.max_draft_tokens

    @property
    def acceptance_rates(self) -> tuple[float, ...]:
        """Synthetic chances of acceptance by position, the last for all beyond; none = verified."""
        text = self.synthetic_acceptance
        return () if text is None else parse_acceptance(text)

    def check_acceptance(self) -> None:
        """Check that somebody drafts whose drafts a synthetic acceptance could accept.

        Raises:
            ConfigError: nobody does.
        """
        if self.acceptance_rates and not (self.drafters and self.num_draft_tokens):
            reason = "speculation is off" if self.is_off else "nobody is named who drafts"
            raise ConfigError(
                f"synthetic_acceptance: {self.synthetic_acceptance} needs drafts, but {reason}; "
                "give --draft, and not --speculation off."
            )

    def _check_drafters(self) -> None:
        names = self.drafters
        if "" in names or len(set(names)) < len(names):
            raise ConfigError(f"draft: {self.draft!r} names a drafter twice, or an empty one.")
        if NO_DRAFT in names or len(set(names) - set(TOKEN_DRAFTERS)) > 1:
            raise ConfigError(
                f"draft: {self.draft!r} cannot be honoured; give at most one draft model or "
                f"{LAYER_SKIP} beside {', '.join(TOKEN_DRAFTERS)}, or {NO_DRAFT} alone."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerConfig:
    """How steps are run."""

    graphs: str = option(
        "auto",
        "how passes that decode are launched: eager (kernel by kernel), lazy (as CUDA graphs, each "
        "recorded when it is first needed), full (all recorded at start-up); auto = lazy on CUDA",
        metavar="eager|lazy|full",
    )
    decode_ahead: str = option(
        "auto",
        "whether a decoding step is launched before the tokens of the one before it are read; "
        "auto = on CUDA",
        metavar="auto|on|off",
    )

    attention_backend: str = option(
        AUTO,
        "who computes attention on CUDA: triton (our own kernels), torch (its attention over block "
        "tables), flashinfer (prompts, with --decode-ahead off; the rest is triton's); auto = "
        "whoever of those installed is fastest for a model's shapes",
        metavar="auto|triton|torch|flashinfer",
    )
    overlap_kernels: bool = option(
        False,
        "on CUDA devices of compute capability 9 and later, let a pass's kernels start while the "
        "ones in front of them end (programmatic dependent launch)",
    )

    def __post_init__(self) -> None:
        _one_of("attention_backend", self.attention_backend, ATTENTION_BACKENDS)
        _one_of("graphs", self.graphs, GRAPHS)
        _one_of("decode_ahead", self.decode_ahead, SWITCHES)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Everything an engine needs to start."""

    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    speculation: SpeculationConfig = field(default_factory=SpeculationConfig)
    runner: RunnerConfig = field(default_factory=RunnerConfig)

    def __post_init__(self) -> None:
        rows = (self.speculation.max_draft_tokens or 0) + 1
        limit = self.scheduler.max_num_batched_tokens
        if limit is not None and rows > limit:
            raise ConfigError(
                f"max_num_batched_tokens: {limit} cannot hold one "
                f"verify pass of {rows} tokens; raise it or lower --speculation."
            )

    def on_device(self, device_type: str) -> EngineConfig:
        """Settle what depends on the device that computes: `cpu`, `cuda` and so on."""
        if self.scheduler.max_num_batched_tokens is not None:
            return self
        tokens = STEP_TOKENS_OF_CPU if device_type == "cpu" else STEP_TOKENS
        return replace(self, scheduler=replace(self.scheduler, max_num_batched_tokens=tokens))


def parse_speculation(text: str) -> int | None:
    """Read `--speculation`: `off`, a number of draft tokens, or `auto`, which is None.

    Raises:
        ConfigError: anything else.
    """
    if text == "off":
        return 0
    if text == "auto":
        return None
    if not text.isdigit():
        raise ConfigError(
            f"speculation: {text!r} is neither 'off', 'auto' nor a number of draft tokens."
        )
    return int(text)


def parse_acceptance(text: str) -> tuple[float, ...]:
    """Read `--synthetic-acceptance`: one rate, or one for each draft position.

    Raises:
        ConfigError: no numbers, too many of them, or one outside [0, 1].
    """
    try:
        rates = tuple(float(word) for word in text.split(","))
    except ValueError:
        raise ConfigError(
            f"synthetic_acceptance: {text!r} is neither a number nor numbers with commas between."
        ) from None
    if len(rates) > MAX_ACCEPTANCE_RATES:
        raise ConfigError(
            f"synthetic_acceptance: {len(rates)} rates exceed {MAX_ACCEPTANCE_RATES}, the drafts "
            "of a pass at most; the last one holds for all positions beyond."
        )
    for rate in rates:
        if not 0.0 <= rate <= 1.0:
            raise ConfigError(f"synthetic_acceptance: {rate} is outside [0, 1].")
    return rates


def acceptance_text(rates: Iterable[float]) -> str:
    """Write rates of a synthetic acceptance as `--synthetic-acceptance` takes them."""
    return ",".join(map(str, rates))


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(name: str, text: str) -> int:
    """Read a size such as `512MiB`, `4GB` or `1073741824`, in bytes.

    Raises:
        ConfigError: the text is no size, or not above zero.
    """
    digits = text.strip().rstrip("BKMGTIbkmgti").strip()
    unit = text.strip()[len(digits) :].strip().upper()
    try:
        size = int(float(digits) * _UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        raise ConfigError(f"{name}: {text!r} is no size; write e.g. 512MiB or 4GiB.") from None
    if size <= 0:
        raise ConfigError(f"{name}: {text!r} must exceed 0 bytes.")
    return size


def _one_of(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}: {value!r} is not one of {', '.join(choices)}.")


def _at_least(name: str, value: int | None, low: int) -> None:
    if value is not None and value < low:
        raise ConfigError(f"{name}: {value} is below {low}.")
