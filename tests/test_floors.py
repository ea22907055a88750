"""The house holds: imports go down only, and each floor starts without what it must not need."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# The longest entry that a module's name begins with gives its floor; ARCHITECTURE.md draws them.
FLOORS = {
    "kernels": 0,
    "engine.errors": 1,
    "engine.config": 1,
    "engine.config_files": 1,
    "engine.config_flags": 1,
    "engine.sampling_params": 1,
    "engine.request": 1,
    "engine.step": 1,
    "engine.structured_output": 1,
    "engine.door": 1,
    "engine.held_out": 1,
    "engine.log_format": 1,
    "engine.kept_files": 1,
    "engine.metrics": 1,
    "engine.warm_up": 1,
    "engine.outputs": 1,
    "engine.provenance": 1,
    "engine.startup_clock": 1,
    "engine.uncollected": 1,
    "engine.version": 1,
    "engine.background_work": 2,
    "engine.draft_planner": 2,
    "engine.outbox": 2,
    "engine.step_drafts": 2,
    "engine.step_in_making": 2,
    "engine.step_limit": 2,
    "engine.step_ledger": 2,
    "engine.step_times": 2,
    "engine.waiting_queue": 2,
    "engine.scheduler": 2,
    "engine.kv_cache": 2,
    "engine.memory_errors": 3,
    "engine.model": 3,
    "engine.sampling": 4,
    "engine.speculative": 4,
    "engine.speculative.draft_model": 5,
    "engine.speculative.draft_chains": 5,
    "engine.speculative.foreign_draft": 5,
    "engine.speculative.layer_choice": 5,
    "engine.speculative.layer_skip": 5,
    "engine.speculative.string_match": 5,
    "engine.speculative.token_intersection": 5,
    "engine.runner": 5,
    "engine.token_bytes": 3,
    "engine.tokenization": 6,
    "engine.grammar_tokenizer": 6,
    "engine.draft_warnings": 6,
    "engine.model_pair": 6,
    "engine.prompts": 6,
    "engine.pass_origins": 6,
    "engine.speculation": 6,
    "engine.vocabularies": 6,
    "engine.core": 6,
    "engine.client": 6,
    "engine.llm": 6,
    "benchmarks": 7,
    "benchmarks.structured_output": 8,
    "server": 7,
    "server.cli": 8,
    "engine.training": 9,
}
PACKAGES = ("kernels", "engine", "benchmarks", "server")
PACKAGE = "engine"  # its __init__ hands out `LLM`, so it counts as part of floor 6
NO_TORCH_FLOORS = (1, 2)
HOLDS_TENSORS = {"engine.kv_cache.storage"}
SERVER_SEES = {
    "engine.client",
    "engine.config",
    "engine.config_files",
    "engine.config_flags",
    "engine.door",
    "engine.errors",
    "engine.kept_files",
    "engine.log_format",
    "engine.metrics",
    "engine.outputs",
    "engine.provenance",
    "engine.request",
    "engine.sampling_params",
    "engine.structured_output",
    "engine.tokenization",
    "engine.uncollected",
    "engine.version",
}
CLI_SEES = SERVER_SEES | {PACKAGE, "benchmarks", "engine.llm", "engine.prompts", "server"}
# Measures what the server makes of schemas; nobody imports it.
MEASURES_THE_SERVER = {"benchmarks.structured_output"}
TRANSFORMERS_ROOMS = {
    "benchmarks.acceptance",
    "benchmarks.exactness",
    "benchmarks.loading",
    "benchmarks.gpu.peers",
    "benchmarks.gpu.tiny_models",
    "benchmarks.peers.random_checkpoint",
    "benchmarks.peers.workers",
    "benchmarks.random_draft",
    "engine.model",
    "engine.token_bytes",
    "engine.tokenization",
    "engine.training",
    "server.chat_template",
}
NOT_FOR_OFFLINE_USE = (
    "fastapi",
    "llguidance",
    "msgspec",
    "prometheus_client",
    "pydantic",
    "sse_starlette",
    "uvicorn",
    "zmq",
)
# What torch's compiler brings, and what comes with a data scientist's environment.
NOT_FOR_THE_ENGINE_PROCESS = ("matplotlib", "mpmath", "networkx", "pandas", "sympy", "triton")

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def module_files() -> dict[str, Path]:
    """Give every module of the packages and its file."""
    files = (path for room in PACKAGES for path in (ROOT / room).rglob("*.py"))
    modules = {}
    for path in files:
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


MODULES = module_files()


def imports(module: str) -> set[str]:
    """Give what a module imports, wherever in the file; ours as full module names."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            assert node.module is not None
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in inner}
    return names


def belongs(module: str, rooms: set[str]) -> bool:
    """Whether a module is one of the rooms, or lies in one."""
    return any(module == room or module.startswith(f"{room}.") for room in rooms - {PACKAGE}) or (
        module == PACKAGE and PACKAGE in rooms
    )


def floor(module: str) -> int:
    """Give the floor of one of our modules."""
    if module == PACKAGE:
        return FLOORS["engine.llm"]
    rooms = [room for room in FLOORS if belongs(module, {room})]
    assert rooms, f"{module} has no floor; give it one in tests/test_floors.py and ARCHITECTURE.md"
    return FLOORS[max(rooms, key=len)]


def ours(names: set[str]) -> set[str]:
    """Keep the names that are modules of this house."""
    return {name for name in names if name.partition(".")[0] in PACKAGES}


def run_blocked(code: str, blocked: tuple[str, ...]) -> None:
    """Run code in a fresh interpreter in which some packages cannot be imported."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKER.format(blocked=set(blocked)) + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down_only(module: str) -> None:
    higher = {name for name in ours(imports(module)) if floor(name) > floor(module)}
    assert not higher, f"{module} (floor {floor(module)}) imports {sorted(higher)}"


def test_imports_have_no_cycle() -> None:
    graph = {module: ours(imports(module)) - {PACKAGE, module} for module in MODULES}
    assert list(TopologicalSorter(graph).static_order())


def test_only_transformers_rooms_import_transformers() -> None:
    importers = {m for m in MODULES if any(belongs(n, {"transformers"}) for n in imports(m))}
    strangers = {module for module in importers if not belongs(module, TRANSFORMERS_ROOMS)}
    assert not strangers


def test_only_kernels_import_triton() -> None:
    importers = {m for m in MODULES if any(belongs(n, {"triton"}) for n in imports(m))}
    assert not {module for module in importers if not belongs(module, {"kernels"})}


def test_opentelemetry_is_imported_where_traces_are_asked_for() -> None:
    importers = {m for m in MODULES if any(belongs(n, {"opentelemetry"}) for n in imports(m))}
    assert importers == {"server.otlp"}
    assert {m for m in MODULES if "server.otlp" in imports(m)} == {"server.http"}
    # FastAPI itself may import the interface, but nothing that collects or sends.
    run_blocked(
        "import sys\nfrom server.cli.serve import _do_without_torch\n"
        "_do_without_torch()\nimport server.http\n"
        "parts = {'opentelemetry.sdk', 'opentelemetry.exporter', 'server.otlp'}\n"
        "assert not parts & set(sys.modules)",
        blocked=(),
    )


def test_the_package_of_kernels_imports_nothing() -> None:
    assert not imports("kernels")


@pytest.mark.parametrize("module", sorted(m for m in MODULES if belongs(m, {"server"})))
def test_server_sees_only_the_doors_of_the_engine(module: str) -> None:
    doors = CLI_SEES if belongs(module, {"server.cli"}) else SERVER_SEES | {"server"}
    strangers = {name for name in ours(imports(module)) if not belongs(name, doors)}
    assert not strangers
    assert not any(belongs(name, {"torch"}) for name in imports(module))


def test_benchmarks_do_without_the_server() -> None:
    rooms = {m for m in MODULES if belongs(m, {"benchmarks"})} - MEASURES_THE_SERVER
    assert "benchmarks.speculation" in rooms
    assert not {m for m in rooms if any(belongs(n, {"server"}) for n in imports(m))}
    assert not {m for m in MODULES if any(belongs(n, MEASURES_THE_SERVER) for n in imports(m))}


def test_nobody_imports_training() -> None:
    importers = {
        module
        for module in MODULES
        if any(belongs(name, {"engine.training"}) for name in imports(module))
    }
    assert all(belongs(module, {"engine.training"}) for module in importers)


def test_low_floors_start_without_torch() -> None:
    low = sorted(
        module
        for module in MODULES
        if floor(module) in NO_TORCH_FLOORS and module not in HOLDS_TENSORS
    )
    assert "engine.scheduler" in low
    run_blocked(
        "import importlib\n"
        + "\n".join(f"importlib.import_module({module!r})" for module in ["engine", *low]),
        blocked=("torch", "transformers", "numpy"),
    )


def test_offline_engine_starts_without_the_server_libraries() -> None:
    programs = ("speculation", "useless_draft", "drift", "agent_traffic", "controller_cost")
    programs += ("gpu.__main__", "gpu.profile", "throughput", "latency")
    measuring = "".join(f"\nimport benchmarks.{name}" for name in programs)
    code = f"from engine import LLM, SamplingParams{measuring}"
    run_blocked(code, blocked=NOT_FOR_OFFLINE_USE)


def test_the_engine_process_imports_no_compiler() -> None:
    code = "from engine.client.own_process import lean_imports\nwith lean_imports():\n"
    run_blocked(f"{code}    import engine.core", blocked=NOT_FOR_THE_ENGINE_PROCESS)
    with pytest.raises(AssertionError, match="blocked"):
        run_blocked("import engine.core", blocked=NOT_FOR_THE_ENGINE_PROCESS)


def test_the_blocker_blocks() -> None:
    with pytest.raises(AssertionError, match="blocked: pydantic"):
        run_blocked("import pydantic", blocked=NOT_FOR_OFFLINE_USE)
