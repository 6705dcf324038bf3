"""Running a simulation: the rounds, from the first weights to the result."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from edgefl import __version__
from edgefl.codec.history import History
from edgefl.codec.update import needs_history
from edgefl.engine.contract import Engine
from edgefl.engine.open import open_engine
from edgefl.errors import ConfigError
from edgefl.layout import Float32
from edgefl.rates import learning_rate_at
from edgefl.server.rounds import Accept, Repeat, Rounds, aggregated, due, judge, stored
from edgefl.simulate.downlink import Published
from edgefl.simulate.experiment import Experiment
from edgefl.simulate.fairness import Success, participation, standing, success
from edgefl.simulate.fleet import Fleet
from edgefl.simulate.histories import Histories
from edgefl.simulate.jobs import Job
from edgefl.simulate.ledger import Ledger
from edgefl.simulate.past import Past
from edgefl.simulate.result import Result, Row, Totals
from edgefl.simulate.schedule import Arrival, Buffered, Parts, Schedule, Synchronous
from edgefl.simulate.server import Server
from edgefl.simulate.setting import Setting, set_scene
from edgefl.simulate.workers import Workers
from edgefl.wire.messages import HISTORY_REACH


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
    with ExitStack() as stack:
        simulation = Simulation(experiment, setting, workers, stack)
        simulation.run(progress)
        return simulation.result(time.monotonic() - began)


def check(experiment: Experiment) -> None:
    """Refuse what can be seen to be impossible. Raises ConfigError."""
    if experiment.mode == "buffered" and experiment.speeds is None:
        raise ConfigError("buffered rounds need to know how long devices take", remedy="Add a table `speeds`")
    if experiment.mode == "buffered" and experiment.attack and experiment.attack.kind == "alie":
        raise ConfigError("conspirators need synchronous rounds", expected="mode `synchronous` with the attack `alie`")
    if experiment.plan.aggregator == "root-set" and not experiment.root:
        raise ConfigError("the aggregator `root-set` needs examples of the server's own", remedy="Set `root` in the experiment")


class Simulation:
    """One simulation under way. An accumulator with one owner."""

    def __init__(self, experiment: Experiment, setting: Setting, workers: Workers, stack: ExitStack) -> None:
        scene = setting.scene
        self._experiment = experiment
        self._setting = setting
        self._workers = workers
        name = _id(experiment.model)
        self._fleet = Fleet(experiment, name, scene.devices)
        self._server = Server(experiment, scene.head.layout, setting.weights)
        self._ledger = Ledger(name, f"w{experiment.width:g}-{experiment.precision}", scene.sent)
        parts = Parts(experiment, self._fleet, scene, workers, self._ledger)
        self._schedule: Schedule = Buffered(parts) if experiment.mode == "buffered" else Synchronous(parts)
        self._rounds = Rounds(experiment.plan, 1, experiment.plan.rounds, 0.0)
        self._past, self._histories = Past(), Histories(scene.head.layout)
        stack.callback(self._past.close)
        self._engine = evaluator(setting, Path(stack.enter_context(TemporaryDirectory(prefix="edgefl-evaluate-"))))
        self._rows: list[Row] = []
        workers.open(scene)

    def run(self, progress: Callable[[Progress], None]) -> None:
        """All rounds, or as many as the target takes."""
        plan, every = self._experiment.plan, self._experiment.evaluate_every
        for number in range(1, plan.rounds + 1):
            published = self._publish(number)
            self._collect(published)
            counted = self._server.close(self._root(number) if plan.aggregator == "root-set" else None)
            self._fleet.judge(self._server.scores())
            self._rounds = aggregated(self._rounds, self._schedule.now)
            row = None
            if number % every == 0 or number == plan.rounds:
                row = self._evaluate(number, counted)
                self._rows.append(row)
            progress(Progress(number, plan.rounds, row))
            if row and row.accuracy is not None and 0.0 < self._experiment.target <= row.accuracy:
                return

    def _publish(self, number: int) -> Published:
        published = self._server.publish(number)
        for named in (0, 1) if number == 1 else (number,):
            self._past.add(named, published.weights)
            self._workers.share(named, published.weights)
        oldest = min(self._schedule.needed(), number - self._experiment.plan.staleness) - HISTORY_REACH
        self._workers.forget(self._past.forget(oldest))
        return published

    def _collect(self, published: Published) -> None:
        """Take what arrives until the round is to be closed."""
        buffered = self._experiment.mode == "buffered"
        for arrival in self._schedule.arrivals(published, self._server.loss):
            self._take(arrival)
            if buffered and due(self._rounds, arrival.time):
                return

    def _take(self, arrival: Arrival) -> None:
        """Let an update count, if it can."""
        device, played = arrival.played.number, arrival.played
        fleet, ledger = self._fleet, self._ledger
        if played.failure:
            ledger.failed += 1
            self._server.trouble = self._server.trouble or played.failure
            return
        fleet.loss[device], fleet.before[device] = played.loss_after, arrival.number
        key = (fleet.names[device], arrival.number)
        match judge(self._rounds, key):
            case Accept(late=late) if self._server.receive(played, late, self._history(arrival)):
                self._rounds = stored(self._rounds, key)
                fleet.counts[device] += 1
                ledger.updates += 1
                ledger.late += late > 0
            case Accept() | Repeat():
                ledger.refused += 1
            case refusal:
                ledger.refused += 1
                self._server.trouble = self._server.trouble or refusal.reason

    def _history(self, arrival: Arrival) -> History | None:
        """What the update was coded against."""
        if not needs_history(arrival.played.data):
            return None
        return self._histories.of(self._past.weights, arrival.played.before, arrival.number)

    def _root(self, number: int) -> Float32:
        """What the server learns in this round from the examples that it kept back."""
        plan, weights = self._experiment.plan, self._server.weights
        if self._setting.root is None:
            raise ConfigError("the server has no examples of its own")
        rng = np.random.default_rng([self._experiment.seed, 5, number])
        self._engine.set_vector(weights)
        self._engine.train(self._setting.root, epochs=plan.epochs, learning_rate=learning_rate_at(plan, number), rng=rng)
        change: Float32 = self._engine.vector() - weights
        return change

    def _evaluate(self, number: int, counted: int) -> Row:
        self._engine.set_vector(self._server.weights)
        found = self._engine.evaluate(self._setting.holdout)
        ledger = self._ledger
        return Row(
            round=number,
            time=self._schedule.now,
            accuracy=found.accuracy,
            loss=found.loss if np.isfinite(found.loss) else None,
            uplink_bytes=ledger.uplink,
            downlink_bytes=ledger.downlink,
            dense_uplink_bytes=ledger.dense,
            participants=counted,
        )

    def result(self, seconds: float) -> Result:
        """What came of it, with the final weights measured on every honest device."""
        return Result(
            experiment=self._experiment,
            edgefl=__version__,
            rows=tuple(self._rows),
            totals=self._totals(seconds),
            participation=participation(self._fleet.counts.tolist()),
            devices=self._on_devices(),
            standing=standing(self._fleet.standing, self._fleet.excluded, self._fleet.hostile),
            trouble=self._server.trouble,
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
            bits_per_parameter=8 * ledger.uplink / max(1, ledger.sent * ledger.parameters),
            parameters=ledger.parameters,
            final_accuracy=rows[-1].accuracy,
            best_accuracy=max(known, default=None),
            target_round=reached.round if reached else None,
            target_time=reached.time if reached else None,
            target_uplink_bytes=reached.uplink_bytes if reached else None,
            seconds=seconds,
        )

    def _on_devices(self) -> Success | None:
        final = self._rows[-1].round + 1
        self._workers.share(final, self._server.weights)
        honest = np.flatnonzero(~self._fleet.hostile).tolist()
        jobs = [
            Job(final, None, (self._fleet.player(device, final),)) for device in honest if self._setting.scene.samples(device)
        ]
        accuracies = [played.accuracy for answer in self._workers.run(jobs) for played in answer]
        known = [accuracy for accuracy in accuracies if accuracy is not None]
        return success(known) if known else None


def evaluator(setting: Setting, directory: Path) -> Engine:
    """An engine in this process for the hold-out examples."""
    setting.scene.write_graphs(directory)
    return open_engine(setting.scene.files(directory), threads=1)


def _id(model: str) -> str:
    """The model's name as it stands in messages."""
    return model.rpartition(":")[2].lower()[-40:]
