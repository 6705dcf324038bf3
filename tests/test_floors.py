"""The floors: every module stands on one, and imports point downwards."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "edgefl"

# The longest prefix decides.
FLOORS = {
    "edgefl": 0,
    "edgefl.errors": 0,
    "edgefl.names": 0,
    "edgefl.strict_toml": 0,
    "edgefl.profile": 0,
    "edgefl.layout": 0,
    "edgefl.plan": 0,
    "edgefl.recipe": 0,
    "edgefl.rollout_rules": 0,
    "edgefl.examples": 0,
    "edgefl.codec": 1,
    "edgefl.aggregate": 1,
    "edgefl.compress": 1,
    "edgefl.jumpstart": 1,
    "edgefl.participation": 1,
    "edgefl.rates": 1,
    "edgefl.feasible": 2,
    "edgefl.wire": 2,
    "edgefl.device": 3,
    "edgefl.server": 3,
    "edgefl.link": 4,
    "edgefl.store": 4,
    "edgefl.engine": 4,
    "edgefl.export": 4,
    "edgefl.retrain": 4,
    "edgefl.sources": 4,
    "edgefl.identity": 4,
    "edgefl.brokers": 4,
    "edgefl.device.config": 4,
    "edgefl.device.power": 4,
    "edgefl.device.identity": 4,
    "edgefl.device.claimcode": 4,
    "edgefl.device.claiming": 5,
    "edgefl.device.rotation": 5,
    "edgefl.device.notify": 4,
    "edgefl.device.timekeeping": 5,
    "edgefl.device.vitals": 4,
    "edgefl.device.watchdog": 5,
    "edgefl.device.agent": 5,
    "edgefl.device.assembly": 5,
    "edgefl.device.coding": 5,
    "edgefl.device.conditions": 5,
    "edgefl.device.hands": 5,
    "edgefl.device.sending": 5,
    "edgefl.device.training_queue": 5,
    "edgefl.device.examine": 5,
    "edgefl.device.fetching": 5,
    "edgefl.device.following": 5,
    "edgefl.device.held": 5,
    "edgefl.device.installer": 5,
    "edgefl.device.jobs": 5,
    "edgefl.device.recovery": 5,
    "edgefl.device.trial": 5,
    "edgefl.device.start": 5,
    "edgefl.device.trainer": 5,
    "edgefl.device.training": 5,
    "edgefl.device.trust": 5,
    "edgefl.device.voice": 5,
    "edgefl.device.resources": 4,
    "edgefl.device.mirror": 4,
    "edgefl.device.model": 5,
    "edgefl.device.served": 5,
    "edgefl.device.needs": 5,
    "edgefl.device.rebuild": 5,
    "edgefl.device.reuse": 4,
    "edgefl.device.supply": 4,
    "edgefl.device.web": 4,
    "edgefl.server.admission": 5,
    "edgefl.server.announce": 5,
    "edgefl.server.blocks": 5,
    "edgefl.server.aggregation": 5,
    "edgefl.server.catalogue": 5,
    "edgefl.server.batch": 5,
    "edgefl.server.books": 5,
    "edgefl.server.bundle": 5,
    "edgefl.server.claimline": 5,
    "edgefl.server.claims": 5,
    "edgefl.server.enrolment": 5,
    "edgefl.server.labels": 5,
    "edgefl.server.quantising": 5,
    "edgefl.server.rehearsal": 5,
    "edgefl.server.renewal": 5,
    "edgefl.server.founding": 5,
    "edgefl.server.endings": 5,
    "edgefl.server.own_pair": 5,
    "edgefl.server.pairs": 5,
    "edgefl.server.replacing": 5,
    "edgefl.server.history": 5,
    "edgefl.server.inbox": 3,
    "edgefl.server.keys": 5,
    "edgefl.server.distil": 5,
    "edgefl.server.downlink": 5,
    "edgefl.server.expected": 5,
    "edgefl.server.evaluate": 5,
    "edgefl.server.members": 5,
    "edgefl.server.provision": 5,
    "edgefl.server.push": 5,
    "edgefl.server.push_request": 5,
    "edgefl.server.reception": 5,
    "edgefl.server.recording": 5,
    "edgefl.server.revoke": 5,
    "edgefl.server.rollout_orders": 5,
    "edgefl.server.rollout_status": 5,
    "edgefl.server.rollouts": 5,
    "edgefl.server.service": 5,
    "edgefl.server.speech": 5,
    "edgefl.server.starting": 5,
    "edgefl.server.status": 5,
    "edgefl.server.teaching": 5,
    "edgefl.server.traffic": 5,
    "edgefl.server.training": 5,
    "edgefl.server.variants": 5,
    "edgefl.server.cuts": 5,
    "edgefl.server.sensing": 5,
    "edgefl.server.wanted": 5,
    "edgefl.server.version_differences": 5,
    "edgefl.server.workshop": 5,
    "edgefl.server.making": 5,
    "edgefl.server.fitting": 5,
    "edgefl.server.retraining": 5,
    "edgefl.simulate": 5,
    "edgefl.demo": 6,
    "edgefl.cli": 6,
    "edgefl.__main__": 6,
}

# Who may import what comes from outside; the longest prefix decides here too.
ONLY_IN = {
    "torch": ("edgefl.export", "edgefl.retrain", "edgefl.server.push"),
    "torch_pruning": ("edgefl.export.pruning",),
    "onnx": ("edgefl.export",),
    "onnxscript": ("edgefl.export",),
    "onnxruntime": ("edgefl.engine", "edgefl.export"),
    "paho": ("edgefl.link",),
    "cryptography": ("edgefl.identity",),
    "tuf": ("edgefl.identity",),
    "securesystemslib": ("edgefl.identity",),
    "amqtt": ("edgefl.brokers",),
    "sqlite3": ("edgefl.store", "edgefl.server", "edgefl.cli", "edgefl.demo"),
    "click": ("edgefl.cli",),
    "rich": ("edgefl.cli", "edgefl.demo"),
    "sklearn": (),
    "ray": ("edgefl.simulate.cluster",),
    "segno": ("edgefl.server.labels",),
    "matplotlib": ("edgefl.simulate.plots",),
}
PURE = 3
IMPURE = {
    "socket",
    "time",
    "datetime",
    "random",
    "secrets",
    "logging",
    "subprocess",
    "threading",
    "asyncio",
    "os",
    "sqlite3",
    "ssl",
}
# Reading a profile's TOML file is what floor 0 is for.
MAY_READ_FILES = {"edgefl.profile"}


def modules() -> list[str]:
    """Every module of the package by its dotted name."""
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ["edgefl", *path.relative_to(PACKAGE).with_suffix("").parts]
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def path_of(module: str) -> Path:
    """The file of a module."""
    base = PACKAGE.joinpath(*module.split(".")[1:])
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def imports(module: str) -> set[str]:
    """Every module that a module imports, wherever in it the statement stands."""
    found = set()
    for node in ast.walk(ast.parse(path_of(module).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names if f"{node.module}.{alias.name}" in MODULES}
    return found


MODULES = set(modules())


def floor(module: str) -> int:
    """The floor that a module stands on."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (name := ".".join(parts[:length])) in FLOORS and (name != "edgefl" or length == len(parts)):
            return FLOORS[name]
    raise AssertionError(f"{module} stands on no floor: give it one in tests/test_floors.py")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_downwards(module: str) -> None:
    """A module imports from its own floor or lower ones only."""
    for imported in imports(module):
        if imported in MODULES and imported != "edgefl":
            assert floor(imported) <= floor(module), f"{module} (floor {floor(module)}) imports {imported}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_heavy_dependencies_stay_in_their_place(module: str) -> None:
    """Each heavy dependency is imported in the packages that exist for it and nowhere else."""
    for imported in imports(module):
        allowed = ONLY_IN.get(imported.split(".")[0])
        if allowed is not None:
            assert any(module == a or module.startswith(a + ".") for a in allowed), f"{module} imports {imported}"


@pytest.mark.parametrize("module", sorted(m for m in MODULES if floor(m) <= PURE and m not in MAY_READ_FILES))
def test_pure_floors_touch_no_world(module: str) -> None:
    """Below the adapters there is no socket, clock, global randomness, process or log."""
    touched = {name.split(".")[0] for name in imports(module)} & IMPURE
    assert not touched, f"{module} imports {touched}"
    assert not re.search(r"np\.random\.(?!Generator|default_rng\b)", path_of(module).read_text()), (
        f"{module} uses global randomness"
    )


def test_import_graph_has_no_cycles() -> None:
    """No module imports itself, however far round."""
    graph = {m: {i for i in imports(m) if i in MODULES and i not in (m, "edgefl")} for m in MODULES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for following in sorted(graph[module]):
                visit(following, (*path, module))
            done.add(module)

    for module in sorted(MODULES):
        visit(module, ())


@pytest.mark.parametrize(
    "entry",
    [
        "edgefl.device.agent",
        "edgefl.device.trainer",
        "edgefl.device.model",
        "edgefl.cli.main",
        "edgefl.cli.device",
        "edgefl.simulate.worker",
    ],
)
def test_device_process_never_imports_the_servers_libraries(entry: str) -> None:
    """What runs on a board loads neither torch nor onnx nor anything else of the server's."""
    heavy = ["torch", "onnx", "onnxscript", "amqtt", "sklearn", "rich", "sympy", "safetensors"]
    code = f"import sys, {entry}; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
