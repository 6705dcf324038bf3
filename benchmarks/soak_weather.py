"""The fleet of `benchmarks.soak` and its weather: processes full of agents, a server, a broker, and what happens to them.

Model: in bad weather the agents cut their own connections and restart at random (`benchmarks.soak_agents`); from here their
processes and the broker are killed with SIGKILL and started again, and a second version is pushed. The server is left alone, and
its memory is sampled. When it is calm, nothing happens but what the fleet itself still has to do.
"""

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from benchmarks.faults_model import Tiny
from edgefl.brokers.mosquitto import Mosquitto
from edgefl.cli.broker import listener_of
from edgefl.demo.processes import Process
from edgefl.demo.stage import free_port
from edgefl.device.resources import resident
from edgefl.server.founding import create_fleet
from edgefl.server.provision import numbered, provision
from edgefl.server.status import FleetStatus, fleet_status
from edgefl.store.database import open_database
from edgefl.store.fleet import Fleet

PROFILE, FACTORY, MODEL = "rpi-5-8gb", f"benchmarks.faults_model:{Tiny.__name__}", "tiny"
PER_PROCESS = 50
SAMPLE = 2.0
"""Seconds between two looks at the server's memory."""
START_SECONDS, CALM_SECONDS = 180.0, 300.0
BROKER_DOWN = 2.0
HOLDING = ("adopted", "trained")
"""Last words of a device that holds the final weights: it has fetched them, or had them because it trained for that round."""


class Crowd:
    """A process full of agents, started again when it was killed."""

    def __init__(self, bundles: Sequence[Path], log: Path, pause: float, counts: Counter[str]) -> None:
        self._bundles = [str(bundle) for bundle in bundles]
        self._log = log
        self._pause = pause
        self._counts = counts
        self._child = self._start()

    def kill(self) -> None:
        """SIGKILL, and a new one."""
        self.end()
        self._counts["kill"] += 1
        self._child = self._start()

    def calm(self) -> None:
        """No more faults."""
        self._pause = 0.0
        self._tell("0")

    def end(self) -> None:
        """SIGKILL."""
        self._child.kill()
        self._child.wait()

    def _start(self) -> subprocess.Popen[str]:
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "benchmarks.soak_agents"]
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        threading.Thread(target=self._count, args=(self._child,), daemon=True).start()
        self._tell(json.dumps({"bundles": self._bundles, "pause": self._pause}))
        return self._child

    def _tell(self, line: str) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()

    def _count(self, child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            self._counts[line.strip()] += 1


class Soak:
    """The fleet and its weather.

    Attributes:
        counts: faults by kind.
        samples: seconds since the weather began and the server's resident bytes.
    """

    def __init__(self, workspace: Path, agents: int, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.samples: list[tuple[float, int]] = []
        self._workspace = workspace
        self._rng = random.Random(seed)  # noqa: S311 - no secret
        self._fleet = _found(workspace)
        names = numbered("board", agents)
        made = provision(self._fleet, names, PROFILE, workspace / "devices", data=f"npz:{workspace / 'data.npz'}")
        self._bundles = [one.bundle for one in made]
        self._broker = Mosquitto(listener_of(self._fleet))
        self._server = Process("server", ["serve", "--fleet", str(self._fleet.path)], workspace)
        self._crowds: list[Crowd] = []
        self._broker_up_at = 0.0

    def begin(self, deadline: float) -> None:
        """Push the first version, let the agents come, start the training."""
        self._server.wait_for("serving fleet", START_SECONDS)
        self.push(1, deadline)
        size = min(PER_PROCESS, -(-len(self._bundles) // 2))
        for place in range(0, len(self._bundles), size):
            chosen = self._bundles[place : place + size]
            pause = 60.0 / len(chosen)  # each agent is met about once a minute
            self._crowds.append(Crowd(chosen, self._workspace / f"agents-{place}.log", pause, self.counts))

    def push(self, version: int, deadline: float) -> None:
        """A version and its training; the weather goes on meanwhile."""
        self._command("push", "push", FACTORY, "--seed", str(version), "--starts", "100", "--fleet", str(self._fleet.path))
        cohort = max(2, len(self._bundles) // 5)
        plan = {"rounds": 100_000, "fraction": 0.25, "cohort": cohort, "quorum": 1, "deadline": deadline, "sparsity": 0.05}
        words = [word for name, value in plan.items() for word in (f"--{name}", str(value))]
        self._command("train", "train", "start", MODEL, *words, "--fleet", str(self._fleet.path))

    def weather(self, seconds: float, *, broker_every: float, kill_every: float, push_at: float, deadline: float) -> None:
        """Bad weather for so long."""
        began = time.monotonic()
        sample_at, kill_at, broker_at, pushed = began, began + kill_every, began + broker_every, False
        while (now := time.monotonic()) < began + seconds:
            if now >= sample_at:
                sample_at += SAMPLE
                self._sample(now - began)
            if now >= kill_at:
                kill_at = now + self._rng.uniform(0.5, 1.5) * kill_every
                self._rng.choice(self._crowds).kill()
            if now >= broker_at:
                broker_at = now + self._rng.uniform(0.5, 1.5) * broker_every
                self._kill_broker()
            self._revive_broker(now)
            if not pushed and now >= began + push_at:
                pushed = True
                threading.Thread(target=self.push, args=(2, deadline), daemon=True).start()
            time.sleep(0.1)
        self._revive_broker(float("inf"))

    def calm(self) -> tuple[int, float]:
        """Stop faults and training; how many have converged, and after how many seconds."""
        began = time.monotonic()
        for crowd in self._crowds:
            crowd.calm()
        self._command("stop", "train", "stop", MODEL, "--fleet", str(self._fleet.path))
        converged = 0
        while time.monotonic() < began + CALM_SECONDS:
            converged = self._converged()
            if converged == len(self._bundles):
                break
            time.sleep(1.0)
        return converged, time.monotonic() - began

    def status(self) -> FleetStatus:
        """As `edgefl status` tells it."""
        with closing(open_database(self._fleet.database)) as database:
            return fleet_status(database, "soak")

    def close(self) -> None:
        """End everybody."""
        for crowd in self._crowds:
            crowd.end()
        self._server.stop()
        self._server.ended(time.monotonic() + 10.0)
        self._broker.stop()

    def _converged(self) -> int:
        status = self.status()
        last = status.trainings[-1]
        name, final = f"{last.model}@{last.version} ", last.rounds[-1].round
        waiting = {b.name for b in self._bundles if (b / "state" / "models" / MODEL / "outbox").exists()}
        return sum(
            device.id not in waiting
            and device.step in HOLDING
            and device.round >= final
            and any(held.startswith(name) for held in device.models)
            for device in status.devices
        )

    def _sample(self, at: float) -> None:
        assert not self._server.done, f"the server died: {self._server.tail()}"
        self.samples.append((round(at, 1), resident(self._server.pid)))

    def _kill_broker(self) -> None:
        if self._broker_up_at == 0.0:
            self._broker.process.kill()
            self._broker.process.wait()
            self.counts["broker"] += 1
            self._broker_up_at = time.monotonic() + BROKER_DOWN

    def _revive_broker(self, now: float) -> None:
        if 0.0 < self._broker_up_at <= now:
            self._broker_up_at = 0.0
            self._broker = Mosquitto(listener_of(self._fleet))

    def _command(self, name: str, *words: str) -> None:
        command = Process(name, words, self._workspace)
        command.wait(START_SECONDS)
        command.check()


def _found(workspace: Path) -> Fleet:
    """A fleet, and the few examples that all boards share."""
    rng = np.random.default_rng(0)
    np.savez(workspace / "data.npz", x=rng.normal(size=(8, 784)).astype(np.float32), y=rng.integers(0, 10, 8))
    return create_fleet(workspace / "fleet", name="soak", host="127.0.0.1", port=free_port())
