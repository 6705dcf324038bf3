"""Studies that are federated runs: each case of `benchmarks.cases` is simulated with several seeds.

Model: each run gives a row (with `curves`, a row for every evaluation). Bytes are those of real encoded messages. Where accuracy
on the devices or simulated time matter, these are in the rows too. A fleet of families gives three rows: the ensemble that is
served, the mean over the structures (a device's own model), and the best structure, which nobody knows beforehand.
"""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np

from benchmarks.case import PAIR_BYTES, Case, Study
from benchmarks.rows import Asked, Row, by_label, mean, spread
from edgefl.codec.sparsify import count_sent
from edgefl.codec.weights import weights_length
from edgefl.engine.open import open_engine
from edgefl.examples import Examples
from edgefl.export.models import load_factory
from edgefl.export.tensors import layout_of
from edgefl.simulate.experiment import Experiment
from edgefl.simulate.processes import LocalWorkers
from edgefl.simulate.result import Result
from edgefl.simulate.run import simulate
from edgefl.simulate.setting import set_scene
from edgefl.simulate.workers import Workers

CENTRAL_PASSES = 30
ENSEMBLES = ("uniform", "weighted")


class Simulated:
    """A study of `benchmarks.cases` as `benchmarks.results` runs it."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self.goal = study.goal

    def rows(self, asked: Asked) -> Iterator[Sequence[Row]]:
        """The rows of each case and seed. Raises EdgeflError."""
        with LocalWorkers(asked.workers) as workers:
            yield from measured(self._study, asked.seeds, workers, asked.only)

    def settings(self) -> Mapping[str, object]:
        """The experiment behind each label."""
        return {case.label: msgspec.to_builtins(case.experiment) for case in self._study.cases()}

    def show(self, rows: Sequence[Row]) -> None:
        """Print the table."""
        print_table(rows)


def measured(study: Study, seeds: int, workers: Workers, only: str) -> Iterator[list[Row]]:
    """The rows of each case and seed."""
    for case in study.cases():
        if only not in case.label:
            continue
        for seed in range(seeds):
            began = time.monotonic()
            experiment = msgspec.structs.replace(case.experiment, seed=seed)
            rows = centralised(case, experiment) if case.central else simulated(case, experiment, workers)
            last = rows[-1]
            rows = rows if study.curves else [row for row in rows if row["rounds"] == last["rounds"]]
            took = time.monotonic() - began
            print(f"  {case.label}, seed {seed}: {last['accuracy']:.4f} after {last['rounds']} rounds, {took:.0f} s", flush=True)
            yield rows


def simulated(case: Case, experiment: Experiment, workers: Workers) -> list[Row]:
    """A row for each evaluation of a federated run.

    Raises:
        EdgeflError: the data is missing, or the experiment is impossible.
    """
    result = simulate(experiment, workers=workers)
    length = served_bytes(experiment)
    return [row for place in range(len(result.rows)) for row in _told(_row(case, result, place, length))]


def served_bytes(experiment: Experiment) -> int:
    """Length of the weights files, at most, of what is served: of each family the widest structure."""
    widest: dict[str, float] = {}
    for group in experiment.structures:
        widest[group.model] = max(group.width, widest.get(group.model, 0.0))
    layouts = [layout_of(load_factory(model, experiment.recipe).build(width)) for model, width in widest.items()]
    return sum(weights_length(layout, experiment.precision) for layout in layouts)


def _told(row: Row) -> list[Row]:
    """A row; of a fleet of families also those of its structures, first, so that the last row is what is served."""
    parts = row["parts"]
    if not isinstance(parts, Mapping) or not any(name in parts for name in ENSEMBLES):
        return [row]
    own = [float(value) for name, value in parts.items() if name not in ENSEMBLES]
    others = {"own model": statistics.fmean(own), "best structure": max(own)}
    told = [{**row, "label": f"{row['label']}, {name}", "accuracy": value, "parts": {}} for name, value in others.items()]
    return [*told, row]


def _row(case: Case, result: Result, place: int, length: int) -> Row:
    found, totals, experiment = result.rows[place], result.totals, result.experiment
    uplink = found.uplink_bytes
    if case.pairs:
        updates = found.dense_uplink_bytes // (4 * totals.parameters)
        uplink = updates * PAIR_BYTES * count_sent(totals.parameters, experiment.plan.sparsity)
    return {
        "label": case.label,
        "seed": experiment.seed,
        "accuracy": found.accuracy,
        "rounds": found.round,
        "bytes": length,
        "uplink_bytes": uplink,
        "downlink_bytes": found.downlink_bytes,
        "dense_uplink_bytes": found.dense_uplink_bytes,
        "uplink_ratio": found.dense_uplink_bytes / max(1, uplink),
        "bits_per_parameter": 32.0 * uplink / max(1, found.dense_uplink_bytes),
        "time": found.time,
        "target_reached": totals.target_round is not None and place == len(result.rows) - 1,
        "refused": totals.refused,
        "trouble": result.trouble,
        "parts": {quality.name.rpartition(":")[2]: quality.accuracy for quality in (*found.structures, *found.ensembles)},
    }


def centralised(case: Case, experiment: Experiment) -> list[Row]:
    """One machine with all the devices' examples; `CENTRAL_PASSES` over them at the plan's learning rate."""
    setting = set_scene(experiment)
    scene, plan = setting.scene, experiment.plan
    examples = Examples(scene.x, scene.y).take(scene.rows)
    with TemporaryDirectory(prefix="edgefl-central-") as directory:
        setting.scene.write_graphs(Path(directory))
        engine = open_engine(setting.scene.files(Path(directory), 0), threads=1)
        engine.set_vector(setting.families[0].weights)
        rng = np.random.default_rng([experiment.seed, 9])
        engine.train(examples, epochs=CENTRAL_PASSES, learning_rate=plan.learning_rate, rng=rng)
        final = engine.evaluate(setting.holdout).accuracy
    return [
        {
            "label": case.label,
            "seed": experiment.seed,
            "accuracy": final,
            "rounds": CENTRAL_PASSES,
            "uplink_bytes": 0,
            "downlink_bytes": 0,
            "dense_uplink_bytes": 0,
        }
    ]


def print_table(rows: Sequence[Row]) -> None:
    """Mean and spread over the seeds of the last row of each run."""
    print(f"\n{'':40}{'accuracy':>10}{'+-':>8}{'bytes':>9}{'rounds':>8}{'up, kB':>11}{'down, kB':>12}{'ratio':>7}{'time':>11}")
    for label, last in by_label(rows).items():
        print(
            f"{label:40}{mean(last, 'accuracy'):>10.4f}{spread(last, 'accuracy'):>8.4f}{mean(last, 'bytes'):>9.0f}"
            f"{mean(last, 'rounds'):>8.0f}{mean(last, 'uplink_bytes') / 1e3:>11.0f}{mean(last, 'downlink_bytes') / 1e3:>12.0f}"
            f"{mean(last, 'uplink_ratio'):>7.0f}{mean(last, 'time'):>11.1f}"
        )
        _print_parts(tuple(last))


def _print_parts(rows: Sequence[Row]) -> None:
    """Each structure and ensemble of a mixed fleet, if it is one."""
    found = [dict(parts) for row in rows if isinstance(parts := row.get("parts"), Mapping) and parts]
    for name in found[0] if found else ():
        values = [float(parts[name]) for parts in found]
        print(f"  {name:38}{statistics.fmean(values):>10.4f}{statistics.pstdev(values):>8.4f}")
