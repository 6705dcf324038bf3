"""Flower's run of the task: its own SuperLink, SuperNodes and `flwr run`, with TLS, the SuperNodes behind the counting proxy.

The app is in `benchmarks/peers/flower`: FedAvg as shipped, without evaluation on devices, and a ClientApp that trains in numpy.
Certificates are of the same kind as edgefl's own. Each SuperNode has a home directory of its own, as boards have.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.uplink_peers import Peer
from benchmarks.uplink_proxy import CountingProxy
from benchmarks.uplink_result import Course, LeftOutError, Row, socket_row
from benchmarks.uplink_task import Setting
from edgefl.demo.stage import free_port
from edgefl.server.founding import create_fleet
from edgefl.store.fleet import Fleet

SOURCES = Path(__file__).parent / "peers"
START_SECONDS, ROUND_SECONDS, STOP_SECONDS = 120.0, 180.0, 15.0
LOOK_EVERY = 0.2
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class FlowerRequest:
    """How Flower is to run: its environment, and seconds to measure idle traffic for (0 does not)."""

    peer: Peer
    idle: float

    @property
    def label(self) -> str:
        """The row's label."""
        return f"flower {self.peer.version} FedAvg"


def run_flower(request: FlowerRequest, task: Path, setting: Setting, seed: int, workspace: Path) -> Row:
    """Run the task of this directory in a new workspace.

    Raises:
        LeftOutError: it does not start, does not get on, or does not do all rounds.
    """
    workspace.mkdir()
    keys = create_fleet(workspace / "keys", name="uplink", port=free_port())
    names = [f"device-{number:02}" for number in range(1, setting.devices + 1)]
    with CountingProxy(keys.settings.port, names) as proxy, _processes(request.peer, workspace) as processes:
        out = workspace / "rounds.jsonl"
        began = time.time()
        processes.bring_up(keys, proxy.ports)
        processes.submit(keys, task, out)
        deadline = time.monotonic() + START_SECONDS + ROUND_SECONDS * setting.rounds
        while len(found := _read(out)) <= setting.rounds:
            processes.check()
            if time.monotonic() > deadline:
                raise LeftOutError(f"{request.label}: no progress after {max(0, len(found) - 1)} rounds; see {workspace}")
            time.sleep(LOOK_EVERY)
        times = [moment for moment, _ in found]
        time.sleep(request.idle)
        left = time.time() if request.idle else times[-1]
        accuracies = [accuracy for _, accuracy in found[1:]]
        return socket_row(Course("flower", request.label, seed, began, times[:-1], times[-1], left, accuracies), setting, proxy)


def _read(out: Path) -> list[tuple[float, float]]:
    """Time and accuracy, before the first round and after each, as far as the ServerApp has written them."""
    if not out.exists():
        return []
    lines = out.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()  # the last line may be half written
    return [(float(values["time"]), float(values["accuracy"])) for values in map(json.loads, lines)]


@contextmanager
def _processes(peer: Peer, workspace: Path) -> Iterator["_Processes"]:
    processes = _Processes(peer, workspace)
    try:
        yield processes
    finally:
        processes.close()


class _Processes:
    """Flower's processes, each with its log in the workspace, each in a session of its own."""

    def __init__(self, peer: Peer, workspace: Path) -> None:
        self._peer, self._workspace = peer, workspace
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def bring_up(self, keys: Fleet, ports: dict[str, int]) -> None:
        """Start the SuperLink, and a SuperNode for each device that connects through its port of the proxy."""
        served, root = str(keys.settings.port), str(keys.root_certificate)
        files = ("--ssl-certfile", keys.broker_certificate, "--ssl-keyfile", keys.broker_key, "--ssl-ca-certfile", root)
        self._start("superlink", "flower-superlink", *files, "--port", served, "--disable-runtime-dependency-installation")
        self._wait_for("superlink", "running on")
        for number, (name, port) in enumerate(ports.items(), 1):
            there = ("--superlink", f"127.0.0.1:{port}", "--root-certificates", root)
            self._start(name, "flower-supernode", *there, "--port", str(free_port()), "--node-config", f"device={number}")

    def submit(self, keys: Fleet, task: Path, out: Path) -> None:
        """Bundle the app and start it, as `flwr run` does."""
        app = self._workspace / "app"
        (app / "uplink").mkdir(parents=True)
        shutil.copy(SOURCES / "flower" / "pyproject.toml", app)
        for source in (SOURCES / "flower" / "client.py", SOURCES / "flower" / "server.py", SOURCES / "perceptron.py"):
            shutil.copy(source, app / "uplink")
        (app / "uplink" / "__init__.py").touch()
        home = self._home("operator")
        link = f'address = "127.0.0.1:{keys.settings.port}"\nroot-certificates = "{keys.root_certificate}"\n'
        (home / "config.toml").write_text(f'[superlink]\ndefault = "uplink"\n\n[superlink.uplink]\n{link}', encoding="utf-8")
        wishes = f'task="{task.resolve()}" out="{out.resolve()}"'
        self._start("operator", "flwr", "run", str(app), "uplink", "--run-config", wishes)
        child = self._children.pop("operator")
        try:
            code = child.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            code = child.wait()
        if code:
            raise LeftOutError(f"`flwr run` failed: {self._tail('operator')}")

    def check(self) -> None:
        """Raises LeftOutError when a process has ended."""
        for name, child in self._children.items():
            if child.poll() is not None:
                raise LeftOutError(f"Flower's {name} ended with status {child.returncode}: {self._tail(name)}")

    def close(self) -> None:
        """End all: the nodes first, each together with what it has started."""
        for wave in (False, True):
            children = [child for name, child in self._children.items() if (name == "superlink") == wave]
            for child in children:
                child.terminate()
            deadline = time.monotonic() + STOP_SECONDS
            for child in children:
                with suppress(subprocess.TimeoutExpired):
                    child.wait(max(0.0, deadline - time.monotonic()))
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()

    def _start(self, name: str, program: str, *arguments: str | Path) -> None:
        command = [str(self._peer.program(program)), *map(str, arguments)]
        # Flower starts its own programs by name.
        path = f"{self._peer.program('').resolve()}{os.pathsep}{os.environ.get('PATH', '')}"
        environment = {**os.environ, **QUIET, "FLWR_HOME": str(self._home(name)), "PATH": path}
        with self._log(name).open("wb") as log:
            child = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        self._children[name] = child

    def _wait_for(self, name: str, text: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while text not in self._log(name).read_text(errors="replace").lower():
            self.check()
            if time.monotonic() > deadline:
                raise LeftOutError(f"Flower's {name} did not start: {self._tail(name)}")
            time.sleep(LOOK_EVERY)

    def _home(self, name: str) -> Path:
        home = self._workspace / "homes" / name
        home.mkdir(parents=True, exist_ok=True)
        return home

    def _log(self, name: str) -> Path:
        return self._workspace / f"{name}.log"

    def _tail(self, name: str) -> str:
        lines = self._log(name).read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing in its log"
