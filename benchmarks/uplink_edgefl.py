"""edgefl's run of the task: its own broker, server and device processes on loopback, the devices behind the counting proxy.

Everything is done by `edgefl` commands, as an operator would; the plan's defaults are the command's own, apart from what the task
prescribes and the options that are asked for. All devices have the profile of a small board, which holds the model whole.
"""

import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from benchmarks.uplink_proxy import CountingProxy
from benchmarks.uplink_result import Course, LeftOutError, Row, socket_row
from benchmarks.uplink_task import MODEL, Setting
from edgefl.demo.processes import Company
from edgefl.demo.stage import free_port
from edgefl.errors import EdgeflError
from edgefl.server.founding import create_fleet
from edgefl.server.provision import provision
from edgefl.server.status import DeviceStatus, TrainingStatus, fleet_status
from edgefl.store.atomic import write_file
from edgefl.store.database import open_database
from edgefl.store.fleet import Fleet
from edgefl.store.ledger import newest_training, rounds
from edgefl.strict_toml import write_toml

PROFILE = "rpi-zero-2w"
PROFILE_FIELDS_OF_ITS_NAME = re.compile(r"^name = .*\n", re.MULTILINE)
WHOLE = "w1-fp32"
START_SECONDS, STEP_SECONDS, ROUND_SECONDS = 60.0, 300.0, 600.0
LOOK_EVERY = 0.1


@dataclass(frozen=True, slots=True)
class EdgeflRequest:
    """How edgefl is to run.

    Attributes:
        options: more options of `edgefl train start`, each word by itself.
        broker: `auto`, `mosquitto` or `embedded`.
        idle: seconds to measure idle traffic for; 0 does not.
    """

    options: Sequence[str]
    broker: str
    idle: float

    @property
    def label(self) -> str:
        """The row's label."""
        return " ".join(["edgefl", *(option.removeprefix("--") for option in self.options or ("defaults",))])


def run_edgefl(request: EdgeflRequest, task: Path, setting: Setting, seed: int, workspace: Path) -> Row:
    """Run the task of this directory in a new workspace.

    Raises:
        LeftOutError: it does not start, does not get on, or does not do all rounds.
    """
    workspace.mkdir()
    names = [f"device-{number:02}" for number in range(1, setting.devices + 1)]
    try:
        fleet = create_fleet(workspace / "fleet", name="uplink", port=free_port())
        _one_thread(fleet)
        with CountingProxy(fleet.settings.port, names) as proxy:
            bundles = [_bundle(fleet, name, proxy.ports[name], task / f"shard-{name[-2:]}.npz", workspace) for name in names]
            with _company(workspace) as company, closing(open_database(fleet.database)) as database:
                run = _Run(fleet, company, database, request)
                began = time.time()
                run.bring_up(bundles, task, setting, seed)
                run.train(setting, seed, task)
                ended = time.time()
                time.sleep(request.idle)
                return socket_row(run.course(seed, began, ended, time.time() if request.idle else ended), setting, proxy)
    except EdgeflError as error:
        raise LeftOutError(f"{request.label}: {error}") from error


def _one_thread(fleet: Fleet) -> None:
    """The profile with one thread: the devices share this machine's cores."""
    text = write_toml(msgspec.structs.replace(fleet.profiles()[PROFILE], threads=1))
    write_file(fleet.path / "profiles" / f"{PROFILE}.toml", PROFILE_FIELDS_OF_ITS_NAME.sub("", text).encode())


def _bundle(fleet: Fleet, name: str, port: int, shard: Path, workspace: Path) -> Path:
    """A device that finds the broker at this port."""
    behind = replace(fleet, settings=msgspec.structs.replace(fleet.settings, port=port))
    return provision(behind, [name], PROFILE, workspace / "bundles", data=f"npz:{shard.resolve()}")[0].bundle


@contextmanager
def _company(workspace: Path) -> Iterator[Company]:
    company = Company(workspace)
    try:
        yield company
    finally:
        company.close()


class _Run:
    """The running processes and what the fleet's database says of them."""

    def __init__(self, fleet: Fleet, company: Company, database: sqlite3.Connection, request: EdgeflRequest) -> None:
        self._at = ("--fleet", str(fleet.path))
        self._company, self._database, self._request = company, database, request

    def bring_up(self, bundles: Sequence[Path], task: Path, setting: Setting, seed: int) -> None:
        """Start everything, push the model, and wait until every device holds it whole."""
        broker = self._company.start("broker", "broker", "--broker", self._request.broker, *self._at)
        broker.wait_for("broker ready", START_SECONDS)
        self._company.start("server", "serve", *self._at).wait_for("serving fleet", START_SECONDS)
        for bundle in bundles:
            self._company.start(bundle.name, "device", "run", str(bundle))
        self._command("push", "push", MODEL, "--batch", str(setting.batch), "--seed", str(seed), *self._holdout(task))
        self._until(lambda: all(device.models for device in self._devices), STEP_SECONDS)
        for device in self._devices:
            if WHOLE not in device.models[0]:
                raise LeftOutError(f"{device.id} holds {device.models[0]}, not the whole model")

    def train(self, setting: Setting, seed: int, task: Path) -> None:
        """All rounds, until every device has the last weights."""
        plan = {
            "rounds": setting.rounds,
            "epochs": setting.epochs,
            "learning-rate": setting.learning_rate,
            "deadline": ROUND_SECONDS,
            "seed": seed,
        }
        words = [word for name, value in plan.items() for word in (f"--{name}", str(value))]
        self._command("train", "train", "start", MODEL, *words, *self._request.options, *self._holdout(task))
        self._until(lambda: self._training.state != "running", ROUND_SECONDS * setting.rounds)
        last = self._training.last_round
        self._until(lambda: all(d.step == "adopted" and d.round >= last for d in self._devices), STEP_SECONDS)

    def course(self, seed: int, began: float, ended: float, left: float) -> Course:
        """What the ledger says of the rounds."""
        done = rounds(self._database, newest_training(self._database, MODEL).id)
        accuracies = [r.accuracy for r in done if r.accuracy is not None]
        payload = sum(r.uplink for r in done)
        return Course("edgefl", self._request.label, seed, began, [r.opened for r in done], ended, left, accuracies, payload)

    @property
    def _devices(self) -> list[DeviceStatus]:
        return fleet_status(self._database, "uplink").devices

    @property
    def _training(self) -> TrainingStatus:
        return fleet_status(self._database, "uplink").trainings[-1]

    def _holdout(self, task: Path) -> tuple[str, ...]:
        return ("--holdout", f"npz:{(task / 'test.npz').resolve()}", *self._at)

    def _command(self, name: str, *arguments: str) -> None:
        command = self._company.once(name, *arguments)
        command.wait(STEP_SECONDS)
        command.check()

    def _until(self, reached: Callable[[], bool], seconds: float) -> None:
        """Wait; a process that has died fails the run, for its second start would be counted too."""
        deadline = time.monotonic() + seconds
        while not reached():
            self._company.revive()
            died = [name for name, restarts in self._company.restarts().items() if restarts]
            if died or time.monotonic() > deadline:
                reason = f"{', '.join(died)} died" if died else "no progress"
                raise LeftOutError(f"{self._request.label}: {reason}")
            time.sleep(LOOK_EVERY)
