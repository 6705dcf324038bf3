"""A fleet in bad weather for a while: `python -m benchmarks.soak --agents 300 --seconds 600 --json FILE`.

Model: one server (`edgefl serve`), one Mosquitto and many agents in a few processes (`benchmarks.soak_agents`) train in short
rounds; after a quarter of the time a second version is pushed. Meanwhile connections are cut, agents restarted, processes full of
agents killed with SIGKILL, and the broker killed with SIGKILL and started again, at random. Then it becomes quiet, the training
is stopped, and all must hold the last version with its final weights, with nothing left to send.

The server's resident memory is sampled all the time and judged by its slope (`benchmarks.soak_memory`), once through what follows
a warm-up and once through the second half.
"""

import argparse
import json
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.soak_memory import quarters, slope, warm
from benchmarks.soak_weather import Soak
from edgefl import __version__


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
