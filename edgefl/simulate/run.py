"""Running a simulation: the rounds, from the first weights to the result."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from edgefl import __version__
from edgefl.codec.history import History
from edgefl.codec.update import needs_history
from edgefl.feasible import check_fleet
from edgefl.participation import mean_loss
from edgefl.server.rounds import Accept, Repeat, Rounds, aggregated, due, judge, stored
from edgefl.simulate.checks import check
from edgefl.simulate.examiner import Examiner
from edgefl.simulate.experiment import Experiment
from edgefl.simulate.fairness import participation, standing
from edgefl.simulate.final import OnDevices
from edgefl.simulate.fleet import Fleet
from edgefl.simulate.histories import Histories
from edgefl.simulate.ledger import Ledger, Named
from edgefl.simulate.past import Past
from edgefl.simulate.result import Result, Row, Totals
from edgefl.simulate.schedule import Arrival, Buffered, Orders, Parts, Schedule, Synchronous
from edgefl.simulate.server import Server
from edgefl.simulate.setting import Setting, set_scene
from edgefl.simulate.workers import Workers
from edgefl.wire.rounds import HISTORY_REACH


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a simulation is: the round just closed, of how many, and its evaluation if there was one."""

    round: int
    rounds: int
    row: Row | None


def simulate(experiment: Experiment, *, workers: Workers, progress: Callable[[Progress], None] = lambda _: None) -> Result:
    """Play an experiment.

    Args:
        experiment: what is simulated.
        workers: who plays the devices; the result does not depend on it. They stay usable.
        progress: told after every round.

    Raises:
        ConfigError: the experiment is impossible, or needs data that is not there.
        DataError, ModelError, EngineError: the data or the model cannot be used.
        MachineError: a worker died, or the disk is full.
    """
    check(experiment)
    began = time.monotonic()
    setting = set_scene(experiment)
    check_fleet(experiment.plan, setting.scene.devices, [family.layout for family in setting.families])
    with ExitStack() as stack:
        simulation = Simulation(experiment, setting, workers, stack)
        simulation.run(progress)
        return simulation.result(time.monotonic() - began)


class Simulation:
    """One simulation under way. An accumulator with one owner."""

    def __init__(self, experiment: Experiment, setting: Setting, workers: Workers, stack: ExitStack) -> None:
        scene = setting.scene
        self._experiment = experiment
        self._setting = setting
        self._workers = workers
        names = [Named(_id(group.model), f"{group.name}-{experiment.precision}") for group in experiment.structures]
        layouts = [structure.head.layout for structure in scene.structures]
        self._fleet = Fleet(experiment, [names[kind].model for kind in scene.kinds])
        self._servers = [Server(experiment, family, layouts) for family in setting.families]
        self._server_of = {kind: server for f, server in zip(setting.families, self._servers, strict=True) for kind in f.views}
        self._loss = 0.0
        self._trouble = ""
        self._ledger = Ledger(names, scene)
        parts = Parts(experiment, self._fleet, scene, workers, self._ledger)
        self._schedule: Schedule = Buffered(parts) if experiment.mode == "buffered" else Synchronous(parts)
        self._rounds = Rounds(experiment.plan, 1, experiment.plan.rounds, 0.0)
        self._past, self._histories = Past(), [Histories(layout) for layout in layouts]
        stack.callback(self._past.close)
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="edgefl-evaluate-")))
        self._examiner = Examiner(experiment, setting, directory)
        self._rows: list[Row] = []
        workers.open(scene)

    def run(self, progress: Callable[[Progress], None]) -> None:
        """All rounds, or as many as the target takes."""
        plan, every = self._experiment.plan, self._experiment.evaluate_every
        for number in range(1, plan.rounds + 1):
            self._collect(self._publish(number))
            counted = self._close(number)
            self._rounds = aggregated(self._rounds, self._schedule.now)
            self._teach(number)
            row = None
            if number % every == 0 or number == plan.rounds:
                row = self._evaluate(number, counted)
                self._rows.append(row)
            progress(Progress(number, plan.rounds, row))
            if row and row.accuracy is not None and 0.0 < self._experiment.target <= row.accuracy:
                return

    def _publish(self, number: int) -> Orders:
        orders = {kind: published for server in self._servers for kind, published in server.publish(number).items()}
        for named in (0, 1) if number == 1 else (number,):
            for kind, published in orders.items():
                self._past.add(kind, named, published.weights)
                self._workers.share(kind, named, published.weights)
        oldest = min(self._schedule.needed(), number - self._experiment.plan.staleness) - HISTORY_REACH
        self._workers.forget(self._past.forget(oldest))
        return orders

    def _collect(self, orders: Orders) -> None:
        """Take what arrives until the round is to be closed."""
        buffered = self._experiment.mode == "buffered"
        for arrival in self._schedule.arrivals(orders, self._loss):
            self._take(arrival)
            if buffered and due(self._rounds, arrival.time):
                return

    def _take(self, arrival: Arrival) -> None:
        """Let an update count, if it can."""
        device, played = arrival.played.number, arrival.played
        fleet, ledger = self._fleet, self._ledger
        if played.failure:
            ledger.failed += 1
            self._trouble = self._trouble or played.failure
            return
        fleet.loss[device], fleet.before[device] = played.loss_after, arrival.number
        key, kind = (fleet.names[device], arrival.number), self._setting.scene.kind(device)
        match judge(self._rounds, key):
            case Accept(late=late) if self._receive(kind, arrival, late):
                self._rounds = stored(self._rounds, key)
                fleet.counts[device] += 1
                ledger.updates += 1
                ledger.late += late > 0
            case Accept() | Repeat():
                ledger.refused += 1
            case refusal:
                ledger.refused += 1
                self._trouble = self._trouble or refusal.reason

    def _receive(self, kind: int, arrival: Arrival, late: int) -> bool:
        """Let the server read an update; whether it counts."""
        weights, server = partial(self._past.weights, kind), self._server_of[kind]
        left = self._histories[kind].alive(weights, arrival.number)
        return server.receive(kind, arrival.played, late, self._history(kind, arrival), left)

    def _history(self, kind: int, arrival: Arrival) -> History | None:
        """What the update was coded against."""
        if not needs_history(arrival.played.data):
            return None
        return self._histories[kind].of(partial(self._past.weights, kind), arrival.played.before, arrival.number)

    def _close(self, number: int) -> int:
        """Aggregate every family's round; how many updates counted."""
        counted, rooted = 0, self._experiment.plan.aggregator == "root-set"
        for family, server in zip(self._setting.families, self._servers, strict=True):
            counted += server.close(self._examiner.learned(family, server, number) if rooted else None)
        self._fleet.judge({device: score for server in self._servers for device, score in server.scores().items()})
        losses = [loss for server in self._servers for loss in server.losses]
        self._loss = mean_loss(losses) if losses else self._loss
        return counted

    def _teach(self, number: int) -> None:
        """Let the families learn from each other, if it is time for that."""
        ensemble = self._experiment.ensemble
        if ensemble and ensemble.every and number % ensemble.every == 0:
            self._examiner.teach(self._servers, number)

    def _evaluate(self, number: int, counted: int) -> Row:
        structures = self._examiner.structures(self._servers)
        ensembles = self._examiner.ensembles(self._servers) if self._experiment.ensemble else ()
        shown, ledger = (*structures[:1], *ensembles)[-1], self._ledger
        return Row(
            round=number,
            time=self._schedule.now,
            accuracy=shown.accuracy,
            loss=shown.loss,
            uplink_bytes=ledger.uplink,
            downlink_bytes=ledger.downlink,
            dense_uplink_bytes=ledger.dense,
            participants=counted,
            structures=structures if len(structures) > 1 else (),
            ensembles=ensembles,
        )

    def result(self, seconds: float) -> Result:
        """What came of it, with the final weights measured on every honest device."""
        measured = self._measured()
        return Result(
            experiment=self._experiment,
            edgefl=__version__,
            rows=tuple(self._rows),
            totals=self._totals(seconds),
            participation=participation(self._fleet.counts.tolist()),
            devices=measured.before_training(),
            standing=standing(self._fleet.standing, self._fleet.excluded, self._fleet.hostile),
            own=measured.after_training(self._experiment.plan) if self._experiment.tested else None,
            trouble=next(filter(None, (self._trouble, *(server.trouble for server in self._servers))), ""),
        )

    def _totals(self, seconds: float) -> Totals:
        rows, ledger, target = self._rows, self._ledger, self._experiment.target
        known = [row.accuracy for row in rows if row.accuracy is not None]
        reached = next((row for row in rows if row.accuracy is not None and 0.0 < target <= row.accuracy), None)
        return Totals(
            rounds=rows[-1].round,
            time=self._schedule.now,
            updates=ledger.updates,
            late=ledger.late,
            refused=ledger.refused,
            failed=ledger.failed,
            uplink_bytes=ledger.uplink,
            downlink_bytes=ledger.downlink,
            dense_uplink_bytes=ledger.dense,
            bits_per_parameter=32 * ledger.uplink / max(1, ledger.dense),
            parameters=ledger.parameters,
            final_accuracy=rows[-1].accuracy,
            best_accuracy=max(known, default=None),
            target_round=reached.round if reached else None,
            target_time=reached.time if reached else None,
            target_uplink_bytes=reached.uplink_bytes if reached else None,
            seconds=seconds,
            weights_bytes=self._server_of[0].file_length(0),
            pruned=self._server_of[0].pruned,
        )

    def _measured(self) -> OnDevices:
        """The final weights, handed out once more."""
        final = self._rows[-1].round + 1
        for kind, server in self._server_of.items():
            self._workers.share(kind, final, server.weights(kind))
        return OnDevices(self._workers, self._fleet, self._setting.scene, final)


def _id(model: str) -> str:
    """The model's name as it stands in messages."""
    return model.rpartition(":")[2].lower()[-40:]
