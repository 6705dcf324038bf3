"""Personal accuracy and traffic when the fleet's model is pruned while it trains (FedLTN), against training apart and FedBN.

Model: 100 devices with two classes each of MNIST. Each keeps most of its examples for testing, because few to train on is what
makes learning together worth it. What counts is `accuracy`: the mean over devices of the accuracy on these, after the device's
usual local training from the final weights, with whatever is its own. All methods share data, model, rounds, lots and local
steps:

* `FedLTN`: batch normalisation stays on the devices, the model is pruned step by step after pre-training, without rewinding.
* `FedLTN, not pruned`: the same without pruning: what pruning costs.
* `FedLTN, momentum`: with server momentum.
* `FedLTN, 80 rounds`: twice as many rounds as the others, for still much less traffic.
* `FedBN`: batch normalisation stays on the devices (Li et al. 2021).
* `fp32`: federated averaging of everything.
* `local-only`: no device hears of another; each trains as many epochs as devices of the others do on average.

Traffic of FedBN and fp32 is counted as these methods have it, four bytes a parameter both ways; their updates are played with
8 bits a value, which takes nothing from their accuracy. Traffic of FedLTN is that of real encoded messages. `ratio` is of both
ways together against fp32's, whatever the number of rounds.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from benchmarks.rows import Asked, Row, by_label, mean, spread
from edgefl.codec.weights import Precision, weights_length
from edgefl.errors import ConfigError
from edgefl.plan import FleetPruning, Plan
from edgefl.simulate.experiment import Experiment, Shards
from edgefl.simulate.fairness import success
from edgefl.simulate.jobs import Job, Player
from edgefl.simulate.processes import LocalWorkers
from edgefl.simulate.run import simulate
from edgefl.simulate.setting import set_scene
from edgefl.simulate.workers import Workers
from edgefl.wire.tasks import task_of

GOAL = (
    "personal accuracy at least that of local-only and FedBN, a model of at most 1/9 and traffic of at most 4,500/12,000 of dense"
)
NORMS = ("norm*",)
PLAN = Plan(rounds=40, epochs=3, learning_rate=0.1, fraction=0.2, sparsity=1.0, bits=8, context=False)
BASE = Experiment(
    model="benchmarks.models:NormedCNN",
    data="idx:$EDGEFL_DATA/mnist?split=train",
    holdout="idx:$EDGEFL_DATA/mnist?split=test",
    devices=100,
    batch=20,
    split=Shards(each=2),
    tested=0.8,
    plan=PLAN,
    evaluate_every=40,
)
LIGHT = Plan(
    rounds=40,
    epochs=3,
    learning_rate=0.1,
    fraction=0.2,
    sparsity=1.0,
    bits=8,
    context=False,
    pruning=FleetPruning(target=0.87, share=0.25, first=18, every=1),
)


@dataclass(frozen=True, slots=True)
class Method:
    """One line of the table.

    Attributes:
        experiment: with seed 0.
        dense: whether its traffic is that of plain float32.
        apart: whether no device hears of another.
    """

    experiment: Experiment
    dense: bool = True
    apart: bool = False


def _changed(plan: Plan, precision: Precision = Precision.FP32, personal: tuple[str, ...] = NORMS) -> Experiment:
    return msgspec.structs.replace(BASE, plan=plan, precision=precision, personal=personal)


METHODS: Mapping[str, Method] = {
    "cnn FedLTN": Method(_changed(LIGHT, Precision.FP16), dense=False),
    "cnn FedLTN, not pruned": Method(_changed(msgspec.structs.replace(LIGHT, pruning=None), Precision.FP16), dense=False),
    "cnn FedLTN, momentum": Method(
        _changed(msgspec.structs.replace(LIGHT, optimizer="momentum", server_rate=0.15), Precision.FP16), dense=False
    ),
    "cnn FedLTN, 80 rounds": Method(_changed(msgspec.structs.replace(LIGHT, rounds=80), Precision.FP16), dense=False),
    "cnn FedBN": Method(_changed(PLAN)),
    "cnn FedBN, 80 rounds": Method(_changed(msgspec.structs.replace(PLAN, rounds=80))),
    "cnn local-only": Method(BASE, apart=True),
    "cnn fp32": Method(BASE),
}


class FedLtn:
    """The study as `benchmarks.results` runs it."""

    goal = GOAL

    def rows(self, asked: Asked) -> Iterator[Sequence[Row]]:
        """A row for each method and seed whose label contains what was asked for. Raises EdgeflError."""
        with LocalWorkers(asked.workers) as workers:
            for seed in range(asked.seeds):
                for label, method in METHODS.items():
                    if asked.only in label:
                        yield [measured(label, method, seed, workers)]

    def settings(self) -> Mapping[str, object]:
        """The experiment behind each label."""
        return {label: msgspec.to_builtins(method.experiment) for label, method in METHODS.items()}

    def show(self, rows: Sequence[Row]) -> None:
        """Means over the seeds."""
        print(f"\n{'':26}{'accuracy':>10}{'+-':>8}{'worst':>8}{'bytes':>10}{'1/':>7}{'up, MB':>9}{'down, MB':>10}{'ratio':>8}")
        for label, found in by_label(rows).items():
            print(
                f"{label:26}{mean(found, 'accuracy'):>10.4f}{spread(found, 'accuracy'):>8.4f}{mean(found, 'worst_tenth'):>8.4f}"
                f"{mean(found, 'bytes'):>10.0f}{mean(found, 'smaller'):>7.1f}{mean(found, 'uplink_bytes') / 1e6:>9.2f}"
                f"{mean(found, 'downlink_bytes') / 1e6:>10.2f}{mean(found, 'ratio'):>8.4f}"
            )


def measured(label: str, method: Method, seed: int, workers: Workers) -> Row:
    """The row of one run.

    Raises:
        EdgeflError: the data is missing, or a training failed.
    """
    began = time.monotonic()
    experiment = msgspec.structs.replace(method.experiment, name=label, seed=seed)
    row = _apart(experiment, workers) if method.apart else _together(experiment, workers, dense=method.dense)
    row |= {"label": label, "seed": seed, "rounds": experiment.plan.rounds, "seconds": time.monotonic() - began}
    print(f"  {label}, seed {seed}: {row['accuracy']:.4f}, ratio {row['ratio']:.4f}, {row['seconds']:.0f} s", flush=True)
    return row


def dense_bytes(experiment: Experiment) -> tuple[int, int]:
    """Length of the model as plain float32, and what federated averaging of it sends one way in the study's rounds."""
    whole = set_scene(msgspec.structs.replace(experiment, personal=())).families[0].layout
    plan = BASE.plan
    return weights_length(whole, Precision.FP32), 4 * whole.size * plan.rounds * round(plan.fraction * experiment.devices)


def _together(experiment: Experiment, workers: Workers, *, dense: bool) -> Row:
    """A federated run."""
    result = simulate(experiment, workers=workers)
    totals, own = result.totals, result.own
    if own is None:
        raise ConfigError("the study tests devices on examples of their own", expected="a share that is tested")
    file, way = dense_bytes(experiment)
    up = down = totals.dense_uplink_bytes
    if not dense:
        up, down = totals.uplink_bytes, totals.downlink_bytes
    return {
        "accuracy": own.mean,
        "worst_tenth": own.worst_tenth,
        "global_accuracy": totals.final_accuracy,
        "bytes": totals.weights_bytes,
        "smaller": file / totals.weights_bytes,
        "pruned": totals.pruned,
        "uplink_bytes": up,
        "downlink_bytes": down,
        "ratio": (up + down) / (2 * way),
        "refused": totals.refused,
        "trouble": result.trouble,
    }


def _apart(experiment: Experiment, workers: Workers) -> Row:
    """Every device by itself, as many epochs as a device of the others trains on average, the last training included."""
    setting, plan = set_scene(experiment), experiment.plan
    epochs = round(plan.epochs * (plan.rounds * plan.fraction + 1))
    task = msgspec.structs.replace(task_of(plan, 1), epochs=epochs, seed=experiment.seed)
    workers.open(setting.scene)
    workers.share(0, 1, setting.families[0].weights)
    jobs = [
        Job(1, task, (Player(device, f"s{experiment.seed}-{device:05}"),), test=True) for device in range(setting.scene.devices)
    ]
    found = [played.accuracy or 0.0 for answer in workers.run(jobs) for played in answer]
    own, file = success(found), dense_bytes(experiment)[0]
    return {
        "accuracy": own.mean,
        "worst_tenth": own.worst_tenth,
        "bytes": file,
        "smaller": 1.0,
        "pruned": 0.0,
        "uplink_bytes": 0,
        "downlink_bytes": 0,
        "ratio": 0.0,
    }
