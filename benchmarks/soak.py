"""A fleet in bad weather for a while: `python -m benchmarks.soak --agents 300 --seconds 600 --json FILE`.

Model: one server (`edgefl serve`), one Mosquitto and many agents in a few processes (`benchmarks.soak_agents`) train in short
rounds; after a quarter of the time a second version is pushed. Meanwhile connections are cut, agents restarted, processes full of
agents killed with SIGKILL, and the broker killed with SIGKILL and started again, at random. Then it becomes quiet, the training
is stopped, and all must hold the last version with its final weights, with nothing left to send.

The server's resident memory is sampled all the time. Its slope is that of the line of least squares, once through what follows a
warm-up and once through the second half. The means of the quarters show whether it rises ever more slowly, as memory that fills
up does (SQLite keeps pages up to `edgefl.store.database.CACHE_KIB`, malloc what it has freed), or steadily, as a leak does.
"""

import argparse
import itertools
import json
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.faults_model import Tiny
from edgefl import __version__
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
WARM_SECONDS, WARM_SHARE = 60.0, 0.35
"""How long the server's memory is not judged: it has not seen everything yet that it will keep."""
START_SECONDS, CALM_SECONDS = 180.0, 300.0
BROKER_DOWN = 2.0
HOLDING = ("adopted", "trained")
"""Last words of a device that holds the final weights: it has fetched them, or had them because it trained for that round."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it.

    Attributes:
        agents, seconds: how many, and how long the bad weather lasted.
        cuts, restarts: of connections, and of agents.
        kills, broker_restarts: processes of agents, and brokers, that SIGKILL has ended.
        rounds, updates: closed rounds and updates counted in them.
        converged: agents that hold the last version and its final weights and have nothing left to send.
        calm_seconds: from the end of the bad weather until all had converged, or until nobody waited any longer.
        server_rss_mb: of the server, in the middle and at the end.
        quarters_mb: the server's mean resident memory in each quarter of the time.
        warm_slope_kb_per_minute: of the server's memory after the warm-up.
        slope_kb_per_minute: the same over the second half.
        samples: seconds and resident bytes.
    """

    agents: int
    seconds: float
    cuts: int
    restarts: int
    kills: int
    broker_restarts: int
    rounds: int
    updates: int
    converged: int
    calm_seconds: float
    server_rss_mb: tuple[float, float]
    quarters_mb: tuple[float, ...]
    warm_slope_kb_per_minute: float
    slope_kb_per_minute: float
    samples: list[tuple[float, int]]


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


def slope(samples: Sequence[tuple[float, int]]) -> float:
    """Kilobytes a minute of the line of least squares through the samples."""
    times, sizes = np.array([at for at, _ in samples]), np.array([float(size) for _, size in samples])
    return float(np.polyfit(times, sizes, 1)[0]) * 60.0 / 1000.0 if len(samples) > 1 else 0.0


def warm(samples: Sequence[tuple[float, int]]) -> Sequence[tuple[float, int]]:
    """The samples after the warm-up: a minute at least, and until a second version's training has begun."""
    after = max(WARM_SECONDS, samples[-1][0] * WARM_SHARE)
    return [sample for sample in samples if sample[0] >= after]


def quarters(samples: Sequence[tuple[float, int]]) -> tuple[float, ...]:
    """Mean megabytes in each quarter of the samples."""
    return tuple(round(float(np.mean([size for _, size in part])) / 1e6, 2) for part in _parts(samples, 4) if part)


def _parts(samples: Sequence[tuple[float, int]], count: int) -> list[Sequence[tuple[float, int]]]:
    cuts = [len(samples) * place // count for place in range(count + 1)]
    return [samples[begin:end] for begin, end in itertools.pairwise(cuts)]


def run(workspace: Path, agents: int, seconds: float, seed: int, say: Callable[[str], None]) -> Result:
    """Let it happen; what came of it."""
    soak = Soak(workspace, agents, seed)
    deadline = min(10.0, max(3.0, seconds / 20.0))
    try:
        soak.begin(deadline)
        say(f"{agents} agents started, {seconds:.0f} s of bad weather")
        every = max(15.0, seconds / 8.0)
        soak.weather(seconds, broker_every=every, kill_every=every / 2.0, push_at=seconds / 4.0, deadline=deadline)
        say("calm")
        converged, calm = soak.calm()
        status = soak.status()
    finally:
        soak.close()
    rounds = [r for training in status.trainings for r in training.rounds if not r.open]
    middle, end = soak.samples[len(soak.samples) // 2][1], soak.samples[-1][1]
    return Result(
        agents=agents,
        seconds=seconds,
        cuts=soak.counts["cut"],
        restarts=soak.counts["restart"],
        kills=soak.counts["kill"],
        broker_restarts=soak.counts["broker"],
        rounds=len(rounds),
        updates=sum(r.updates for r in rounds),
        converged=converged,
        calm_seconds=round(calm, 1),
        server_rss_mb=(round(middle / 1e6, 1), round(end / 1e6, 1)),
        quarters_mb=quarters(soak.samples),
        warm_slope_kb_per_minute=round(slope(warm(soak.samples)), 1),
        slope_kb_per_minute=round(slope(soak.samples[len(soak.samples) // 2 :]), 1),
        samples=soak.samples,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Soak, print, and write the numbers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--agents", type=int, default=300, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=600.0, help="of bad weather (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=0, help="of the weather")
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY", help="work here and leave everything, to look into")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="edgefl-soak-") as directory:
        result = run(given.keep or Path(directory), given.agents, given.seconds, given.seed, lambda text: print(text, flush=True))
    for name, value in asdict(result).items():
        if name != "samples":
            print(f"{name:22} {value}")
    if given.json is not None:
        document = {**asdict(result), "edgefl": __version__, "python": platform.python_version()}
        given.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if result.converged < result.agents:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
