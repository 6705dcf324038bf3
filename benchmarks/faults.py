"""Sudden death, a thousand times: `python -m benchmarks.faults --kills 1000 --json FILE`.

Model: one server, Mosquitto and a few devices, all real processes on loopback, train a tiny model in short rounds. Each is killed
with SIGKILL again and again and started again: at every boundary of what it persists, in turn (`benchmarks.faults_fuse`), and by
an outside hand at random moments. Twice meanwhile a new version is pushed and fetched. Then the killing stops, the devices settle
what they have, and the ledger is compared with what devices and server noted (`benchmarks.faults_verdict`).

`kills` counts processes that SIGKILL has ended, nothing simulated. The tests' deaths in process, at every boundary of one story
(`tests/test_agent_crash.py`), come on top of these and are not counted here.
"""

import argparse
import json
import platform
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.faults_fleet import Fleet
from benchmarks.faults_roles import wait_until
from benchmarks.faults_verdict import gave_up, holds_model, judge
from edgefl import __version__

FACTORY, MODEL = "benchmarks.faults_model:Tiny", "tiny"
BOUNDARIES = 60
"""About how many boundaries there are."""
START_SECONDS, SETTLE_SECONDS = 120.0, 240.0


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it.

    Attributes:
        kills: processes ended by SIGKILL; `at_boundaries` of them by their own fuse, the others from outside.
        lost_updates, double_counts: see `benchmarks.faults_verdict`.
        devices_without_model: deaths that left a device without the model that it had, and devices without one at the end.
        boundaries: deaths by boundary.
        struck: deaths from outside, by role.
        given_up: devices that took the newest version for bad, since their trainers were killed in it, and went back.
        settled, stored, rounds: updates that devices were told are stored, that the ledger holds; rounds closed and recomputed.
        complaints: what is wrong, in words.
    """

    kills: int
    lost_updates: int
    double_counts: int
    devices_without_model: int
    at_boundaries: int
    boundaries: dict[str, int]
    struck: dict[str, int]
    given_up: int
    settled: int
    stored: int
    rounds: int
    seconds: float
    complaints: list[str]


def main(arguments: Sequence[str] | None = None) -> None:
    """Kill, judge, print, and write the counts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--devices", type=int, default=4, metavar="N", help="how many devices (default: %(default)s)")
    parser.add_argument("--versions", type=int, default=3, metavar="N", help="versions pushed meanwhile (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random deaths")
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY", help="work here and leave everything, to look into")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts here")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="edgefl-faults-") as directory:
        result = run(given.keep or Path(directory), given.kills, given.devices, given.versions, given.seed)
    print_result(result)
    if given.json is not None:
        document = {**asdict(result), "edgefl": __version__, "python": platform.python_version()}
        given.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if result.lost_updates or result.double_counts or result.devices_without_model:
        raise SystemExit(1)


def run(workspace: Path, kills: int, devices: int, versions: int, seed: int) -> Result:
    """Let a fleet live and die until so many have been killed; what is true of it afterwards."""
    began = time.monotonic()
    fleet = Fleet(workspace, devices, seed)
    rng = random.Random(seed)  # noqa: S311 - no secret
    try:
        fleet.quota = max(1, kills * 2 // 3 // BOUNDARIES)
        for version in range(1, versions + 1):
            fleet.command("push", "push", FACTORY, "--seed", str(version), "--batch", "16", "--starts", "100")
            fleet.model = MODEL
            fleet.command("train", *_train(devices))
            _kill_until(fleet, kills * version // versions, rng)
        fleet.quota = 0
        _settle(fleet, versions)
    finally:
        fleet.close()
    verdict = judge(fleet.fleet.database, fleet.settled, fleet.folded, (fleet.parents, fleet.fleet.blobs))
    bare = sum(not holds_model(bundle, MODEL) for bundle in fleet.bundles)
    boundaries = fleet.boundaries()
    return Result(
        kills=fleet.killed,
        lost_updates=verdict.lost,
        double_counts=verdict.double,
        devices_without_model=fleet.without_model + bare,
        at_boundaries=sum(boundaries.values()),
        boundaries=dict(sorted(boundaries.items())),
        struck=dict(fleet.kills),
        given_up=sum(gave_up(bundle, MODEL, versions) for bundle in fleet.bundles),
        settled=verdict.settled,
        stored=verdict.stored,
        rounds=verdict.rounds,
        seconds=round(time.monotonic() - began, 1),
        complaints=verdict.complaints,
    )


AFTERWARDS = 12
"""Updates that are waited for when the killing has ended, if any device still trains."""


def _train(devices: int) -> list[str]:
    plan = {"rounds": 100_000, "cohort": devices, "quorum": 1, "deadline": 2.0, "staleness": 20, "sparsity": 0.1}
    return ["train", "start", MODEL, *(word for name, value in plan.items() for word in (f"--{name}", str(value)))]


def _kill_until(fleet: Fleet, kills: int, rng: random.Random) -> None:
    """Tend the fleet, and strike now and then, until so many have died."""
    strike_at = time.monotonic()
    told = 0
    while (count := fleet.killed) < kills:
        fleet.tend()
        if time.monotonic() >= strike_at:
            fleet.strike()
            strike_at = time.monotonic() + rng.expovariate(4.0)
        if count >= told + 100:
            told = count
            print(f"  {count} killed, {len(fleet.boundaries())} boundaries", flush=True)
        time.sleep(0.02)


def _settle(fleet: Fleet, version: int) -> None:
    """Let the living finish: everybody holds the newest version, the training stops, nothing waits for a receipt."""
    # Who still carries a fuse with a quota dies at most that often more.
    # A board whose trainer was killed three times in its first round takes the version for bad, goes back and remembers that.
    settled = wait_until(lambda: fleet.settled_on(version), START_SECONDS, fleet.tend)
    assert settled, "a device neither holds the newest version nor has given it up"
    before = fleet.settlements()
    wait_until(lambda: fleet.settlements() >= before + AFTERWARDS, SETTLE_SECONDS, fleet.tend)  # that there is something to judge
    fleet.command("stop", "train", "stop", MODEL)
    assert wait_until(fleet.idle, SETTLE_SECONDS, fleet.tend), "updates wait for ever"


def print_result(result: Result) -> None:
    """The counts, and where the deaths were."""
    for name, count in result.boundaries.items():
        print(f"  {count:5}  {name}")
    for name, count in sorted(result.struck.items()):
        print(f"  {count:5}  {name} at a random moment")
    where = f"{result.at_boundaries} of them at {len(result.boundaries)} boundaries"
    print(f"\n{result.kills} killed in {result.seconds:.0f} s, {where}")
    print(f"{result.settled} updates settled by devices, {result.stored} in the ledger, {result.rounds} rounds recomputed")
    print(
        f"lost updates {result.lost_updates}, double counts {result.double_counts}, without model {result.devices_without_model}"
    )
    for complaint in result.complaints[:20]:
        print(f"  ! {complaint}")


if __name__ == "__main__":
    main()
