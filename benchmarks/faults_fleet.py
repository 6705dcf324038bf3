"""A fleet that is killed and comes back: Mosquitto, server, devices; real processes, started again whenever they have died."""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.faults_fuse import Fuse, deaths
from benchmarks.faults_roles import PLAIN_EXIT, Journal, Settled, fork, run_as_device, run_as_server, wait_until
from benchmarks.faults_verdict import gave_up, holds_model
from edgefl.brokers.mosquitto import Mosquitto
from edgefl.cli.broker import listener_of
from edgefl.demo.processes import Process
from edgefl.demo.stage import free_port
from edgefl.server.founding import create_fleet
from edgefl.server.provision import numbered, provision
from edgefl.server.status import fleet_status
from edgefl.sources.parse import open_source
from edgefl.store.database import open_database

PROFILE = "rpi-5-8gb"
EXAMPLES = 60
RESPITE = 0.3
"""Seconds after which a process that ended by itself (the broker was away) is started again."""


class Fleet:
    """Everything that lives and dies.

    Args:
        workspace: an empty directory.
        devices: how many.
        seed: of the random deaths.

    Attributes:
        quota: deaths that each boundary is to have.
        kills: SIGKILLs of processes by role, from outside.
        without_model: times that a device was found dead without a model that it had before.
    """

    def __init__(self, workspace: Path, devices: int, seed: int) -> None:
        self.workspace = workspace
        self.fleet = create_fleet(workspace / "fleet", name="faults", host="127.0.0.1", port=free_port())
        names = numbered("board", devices)
        examples = open_source("digits:?split=train").load()
        self.bundles = []
        for place, name in enumerate(names):
            rows = slice(EXAMPLES * place, EXAMPLES * (place + 1))
            np.savez(workspace / f"{name}.npz", x=examples.x[rows], y=examples.y[rows])
            (made,) = provision(self.fleet, [name], PROFILE, workspace / "devices", data=f"npz:{workspace / name}.npz")
            self.bundles.append(made.bundle)
        self.log, self.settled, self.folded = workspace / "deaths", workspace / "settled", workspace / "folded"
        self.parents = workspace / "parents"
        self.parents.mkdir()
        self.model = ""
        self.quota = 0
        self.kills: Counter[str] = Counter()
        self.without_model = 0
        self._rng = random.Random(seed)  # noqa: S311 - no secret
        self._children: dict[str, int] = {}
        self._again: dict[str, float] = {}
        self._held: set[str] = set()
        self._broker = Mosquitto(listener_of(self.fleet))
        self.wanted = {"server", *names}

    def boundaries(self) -> Counter[str]:
        """Deaths by boundary."""
        return deaths(self.log)

    @property
    def killed(self) -> int:
        """Processes that SIGKILL has ended so far."""
        return sum(self.kills.values()) + sum(self.boundaries().values())

    def tend(self) -> None:
        """Take note of who has died, and start again who is wanted."""
        for name, pid in list(self._children.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                del self._children[name]
                code = os.waitstatus_to_exitcode(status)
                assert code in (-signal.SIGKILL, -signal.SIGTERM, 0, PLAIN_EXIT), f"{name} ended with {code}, see its log"
                self._again[name] = time.monotonic() + (0.0 if code == -signal.SIGKILL else RESPITE)
                self._look_at(name)
        now = time.monotonic()
        for name in sorted(self.wanted - self._children.keys()):
            if self._again.get(name, 0.0) <= now:
                self._children[name] = self._start(name)

    def strike(self) -> None:
        """Kill somebody from outside, whatever he is doing."""
        victim = self._rng.choices(("device", "trainer", "server", "broker"), (10, 6, 3, 1))[0]
        if victim == "broker":
            self._broker.process.kill()
            self._broker.process.wait()
            self._broker = Mosquitto(listener_of(self.fleet))
        else:
            agents = [pid for name, pid in self._children.items() if name != "server"]
            chosen = {"device": agents, "trainer": [child for pid in agents for child in _children(pid)]}
            pids = chosen.get(victim, [pid for name, pid in self._children.items() if name == "server"])
            if not pids:
                return
            try:
                os.kill(self._rng.choice(pids), signal.SIGKILL)
            except ProcessLookupError:
                return
        self.kills[victim] += 1

    def command(self, name: str, *words: str, seconds: float = 300.0) -> None:
        """Run an `edgefl` command to its end, while the others live on, and die."""
        command = Process(name, [*words, "--fleet", str(self.fleet.path)], self.workspace)
        assert wait_until(lambda: command.done, seconds, self.tend), f"{name} does not end"
        command.check()

    def settled_on(self, version: int) -> bool:
        """Whether every device has told the server that this version is active, or has given it up."""
        with closing(open_database(self.fleet.database)) as database:
            devices = {device.id: device.models for device in fleet_status(database, "faults").devices}
        return all(
            any(held.startswith(f"{self.model}@{version} ") for held in devices[bundle.name])
            or gave_up(bundle, self.model, version)
            for bundle in self.bundles
        )

    def settlements(self) -> int:
        """How many updates devices have settled."""
        return len(Journal(self.settled).read(Settled))

    def idle(self) -> bool:
        """Whether no device has an update that waits for a receipt."""
        return not any((b / "state" / "models" / self.model / "outbox").exists() for b in self.bundles)

    def close(self) -> None:
        """End everybody, in order."""
        self.wanted = {"server"}
        self._end([name for name in self._children if name != "server"])
        self.wanted = set()
        self._end(list(self._children))
        self._broker.stop()

    def _end(self, names: list[str]) -> None:
        for name in names:
            os.kill(self._children[name], signal.SIGTERM)
        if not wait_until(lambda: not self._children.keys() & set(names), 10.0, self.tend):
            for name in self._children.keys() & set(names):
                os.kill(self._children[name], signal.SIGKILL)
            wait_until(lambda: not self._children.keys() & set(names), 10.0, self.tend)

    def _start(self, name: str) -> int:
        log = self.workspace / f"{name}.log"
        if name == "server":
            fuse = Fuse("server", self.log, self.quota, self.fleet.path)
            return fork(partial(run_as_server, self.fleet.path, fuse, self.folded, self.parents), log)
        bundle = self.workspace / "devices" / name
        return fork(partial(run_as_device, bundle, Fuse("device", self.log, self.quota, bundle / "state"), self.settled), log)

    def _look_at(self, name: str) -> None:
        """A dead device must have a model if it had one before."""
        if name == "server" or not self.model:
            return
        if holds_model(self.workspace / "devices" / name, self.model):
            self._held.add(name)
        elif name in self._held:
            self.without_model += 1


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (OSError, subprocess.SubprocessError):
        return []
