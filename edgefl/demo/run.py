"""The demo's course: broker, server and devices start; a version is pushed and fetched; the fleet trains; everything ends.

The demo only does what a person would do: it runs `edgefl` commands and looks at `edgefl status`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgefl.demo.processes import Company
from edgefl.demo.result import DemoResult, demo_result, dense_bytes
from edgefl.demo.stage import MODEL, Stage, set_stage
from edgefl.errors import MachineError
from edgefl.server.status import FleetStatus, fleet_status
from edgefl.store.database import open_database

START_SECONDS = 60.0
PUSH_SECONDS = 600.0
FETCH_SECONDS = 300.0
LOOK_EVERY = 0.25

Show = Callable[[FleetStatus, int, float, str], None]
"""Status, dense bytes of the updates so far, seconds since the start, what is being done."""


@dataclass(frozen=True, slots=True)
class DemoRequest:
    """What to run.

    Attributes:
        devices, rounds, seed: as on the command line.
        data: directory with MNIST's files, or None for digits.
        broker: `auto`, `mosquitto` or `embedded`.
        epochs, learning_rate, sparsity, bits, batch: of the local training and its updates.
        downlink_sparsity: of the weights' way to the devices.
        deadline: seconds of a round; long, because a demo wants every update of every round.
    """

    devices: int
    rounds: int
    data: Path | None
    broker: str
    seed: int
    epochs: int = 4
    learning_rate: float = 0.1
    sparsity: float = 0.01
    bits: int = 4
    batch: int = 16
    downlink_sparsity: float = 1.0
    deadline: float = 600.0


@contextmanager
def _company(workspace: Path) -> Iterator[Company]:
    company = Company(workspace)
    try:
        yield company
    finally:
        company.close()


def run_demo(request: DemoRequest, workspace: Path, show: Show) -> DemoResult:
    """Run it in an existing, empty workspace directory.

    Raises:
        EdgeflError: the data is wrong, a process does not start, or the fleet does not come to an end.
    """
    began = time.monotonic()
    stage = set_stage(workspace, devices=request.devices, data=request.data, seed=request.seed)
    with _company(workspace) as company, closing(open_database(stage.fleet.database)) as database:

        def look(note: str) -> FleetStatus:
            status = fleet_status(database, "demo")
            show(status, dense_bytes(database), time.monotonic() - began, note)
            return status

        _start(company, stage, request, look)
        _train(company, stage, request)
        while (status := look(f"training {MODEL}")).trainings[-1].state == "running":
            company.revive()
            time.sleep(LOOK_EVERY)
        last = status.trainings[-1].last_round
        _until(lambda: _all_adopted(look("bringing the final weights"), last), FETCH_SECONDS, company, lambda: None)
        status = look("done")
        return demo_result(database, status, company.restarts(), time.monotonic() - began)


def _start(company: Company, stage: Stage, request: DemoRequest, look: Callable[[str], FleetStatus]) -> None:
    """Bring everything up, push, and wait until every device holds the version."""
    fleet = ("--fleet", str(stage.fleet.path))
    company.start("broker", "broker", "--broker", request.broker, *fleet).wait_for("broker ready", START_SECONDS)
    company.start("server", "serve", *fleet).wait_for("serving fleet", START_SECONDS)
    for bundle in stage.bundles:
        company.start(bundle.name, "device", "run", str(bundle))
    options = ("--batch", str(request.batch), "--seed", str(request.seed), "--holdout", stage.holdout)
    push = company.once("push", "push", MODEL, *options, *fleet)
    _until(lambda: push.done, PUSH_SECONDS, company, lambda: look(f"pushing {MODEL}: {push.tail()}"))
    push.check()
    _until(lambda: _all_hold(look(f"delivering {MODEL}")), FETCH_SECONDS, company, lambda: None)


def _all_hold(status: FleetStatus) -> bool:
    return all(device.models for device in status.devices)


def _all_adopted(status: FleetStatus, last: int) -> bool:
    return all(device.step == "adopted" and device.round >= last for device in status.devices)


def _until(reached: Callable[[], bool], seconds: float, company: Company, meanwhile: Callable[[], object]) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise MachineError(
                "the demo does not get on", expected=f"the next step within {seconds:.0f} s", remedy="See the logs"
            )
        company.revive()
        meanwhile()
        time.sleep(LOOK_EVERY)


def _train(company: Company, stage: Stage, request: DemoRequest) -> None:
    plan = {
        "rounds": request.rounds,
        "epochs": request.epochs,
        "learning-rate": request.learning_rate,
        "sparsity": request.sparsity,
        "downlink-sparsity": request.downlink_sparsity,
        "bits": request.bits,
        "cohort": request.devices,
        "deadline": request.deadline,
        "seed": request.seed,
    }
    options = [word for name, value in plan.items() for word in (f"--{name}", str(value))]
    start = company.once("train", "train", "start", MODEL, *options, "--holdout", stage.holdout, "--fleet", str(stage.fleet.path))
    start.wait(START_SECONDS)
    start.check()
