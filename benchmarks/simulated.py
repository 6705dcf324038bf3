"""Studies that are federated runs: each case of `benchmarks.cases` is simulated with several seeds.

Model: each run gives a row (with `curves`, a row for every evaluation). Bytes are those of real encoded messages. Where accuracy
on the devices or simulated time matter, these are in the rows too.
"""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np

from benchmarks.cases import PAIR_BYTES, Case, Study
from benchmarks.rows import Asked, Row, by_label, mean, spread
from edgefl.codec.sparsify import count_sent
from edgefl.engine.open import open_engine
from edgefl.examples import Examples
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
            rows = rows if study.curves else rows[-1:]
            last = rows[-1]
            took = time.monotonic() - began
            print(f"  {case.label}, seed {seed}: {last['accuracy']:.4f} after {last['rounds']} rounds, {took:.0f} s", flush=True)
            yield rows


def simulated(case: Case, experiment: Experiment, workers: Workers) -> list[Row]:
    """A row for each evaluation of a federated run.

    Raises:
        EdgeflError: the data is missing, or the experiment is impossible.
    """
    result = simulate(experiment, workers=workers)
    return [_row(case, result, place) for place in range(len(result.rows))]


def _row(case: Case, result: Result, place: int) -> Row:
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
    print(f"\n{'':34}{'accuracy':>10}{'+-':>8}{'rounds':>8}{'up, kB':>11}{'down, kB':>12}{'ratio':>7}{'time':>11}")
    for label, last in by_label(rows).items():
        print(
            f"{label:34}{mean(last, 'accuracy'):>10.4f}{spread(last, 'accuracy'):>8.4f}{mean(last, 'rounds'):>8.0f}"
            f"{mean(last, 'uplink_bytes') / 1e3:>11.0f}{mean(last, 'downlink_bytes') / 1e3:>12.0f}"
            f"{mean(last, 'uplink_ratio'):>7.0f}{mean(last, 'time'):>11.1f}"
        )
        _print_parts(tuple(last))


def _print_parts(rows: Sequence[Row]) -> None:
    """Each structure and ensemble of a mixed fleet, if it is one, and the mean over the structures."""
    found = [dict(parts) for row in rows if isinstance(parts := row.get("parts"), Mapping) and parts]
    if not found:
        return
    for name in found[0]:
        values = [float(parts[name]) for parts in found]
        print(f"  {name:32}{statistics.fmean(values):>10.4f}{statistics.pstdev(values):>8.4f}")
    own = [statistics.fmean(float(v) for name, v in parts.items() if name not in ENSEMBLES) for parts in found]
    print(f"  {'mean of the structures':32}{statistics.fmean(own):>10.4f}{statistics.pstdev(own):>8.4f}")
