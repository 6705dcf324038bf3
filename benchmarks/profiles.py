"""What a push makes of one model for boards of six sizes: it fits, measured, and how much accuracy that costs.

Model: a model is trained in the middle, on MNIST or on windows of motion sensors (HAPT). Its push is planned, exported, run by
the board's trainer in each shipped profile's memory and written to disk, by the same `Workshop` as `edgefl push`; retraining may
use local examples without labels. Held out for the planner are digits, or people; accuracy is measured on test digits, or on
people whom neither training nor planning has seen, with the weights as a board decodes them. Rows are

* `MODEL fp32`: the model as it was trained;
* `MODEL PROFILE`: the variant of a profile. It is an error if one does not fit;
* `MODEL 1/N planned` and `MODEL 1/N widest`: boards with 1/N of the storage that training the whole model takes, weights alone:
  what the planner takes, and the widest nested width with its most precise weights, which is taken where nothing is measured.

Step times are of this machine with the profile's threads. Data is read from the directory that EDGEFL_DATA names.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn

from benchmarks.rows import Asked, Row, by_label, mean, spread
from edgefl.codec.weights import decode_weights, encode_weights
from edgefl.compress.budget import Candidate, candidates
from edgefl.compress.choice import choose
from edgefl.compress.planner import Budget
from edgefl.errors import DataError, FitError
from edgefl.examples import Examples
from edgefl.export.measuring import accuracy_of
from edgefl.export.models import ModelSource, load_factory
from edgefl.export.tensors import set_training, vector_of
from edgefl.layout import Float32
from edgefl.profile import shipped_profiles
from edgefl.server.cuts import nested_cuts
from edgefl.server.retraining import Retraining
from edgefl.server.sensing import Offered
from edgefl.server.workshop import Made, Workshop
from edgefl.sources.idx import IdxSource
from edgefl.sources.windows import WindowsSource
from edgefl.store.blobs import BlobStore

PROFILES = ("rpi-zero-2w", "rpi-3b-plus", "rpi-4b-2gb", "rpi-cm4", "jetson-orin-nano", "x86-64-gateway")
SHARES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
BATCH, TRAIN_BATCH, RATE = 16, 64, 1e-3
DIGITS_HELD_OUT, PEOPLE_HELD_OUT, LOCAL = 1000, 6, 5000
POINT = 0.005
"""What a profile may cost, against the whole model."""


@dataclass(frozen=True, slots=True)
class Task:
    """A model and how it is trained and retrained: passes of Adam, steps while pruning."""

    model: str
    data: Callable[[Path, int], "Data"]
    passes: int
    steps: int = 300


@dataclass(frozen=True, slots=True)
class Data:
    """Disjoint examples."""

    train: Examples
    held: Examples
    test: Examples


def digits(place: Path, seed: int) -> Data:
    """MNIST; some training digits are held out. Raises DataError."""
    train = IdxSource(place / "mnist", None, "train").load().shaped((1, 28, 28), 10)
    order = np.random.default_rng(seed).permutation(len(train))
    test = IdxSource(place / "mnist", None, "test").load().shaped((1, 28, 28), 10)
    return Data(train.take(order[DIGITS_HELD_OUT:]), train.take(order[:DIGITS_HELD_OUT]), test)


def windows(place: Path, seed: int) -> Data:
    """HAPT; some people of the training set are held out. Raises DataError."""
    path = place / "hapt_raw" / "hapt_raw.npz"
    source = WindowsSource(path, "train")
    train, owners = source.load(), source.clients()
    held = np.isin(owners, np.random.default_rng(seed).permutation(np.unique(owners))[:PEOPLE_HELD_OUT])
    return Data(train.take(np.flatnonzero(~held)), train.take(np.flatnonzero(held)), WindowsSource(path, "test").load())


TASKS = {
    "mnist-cnn": Task("mnist-cnn", digits, 2),
    "sensor-cnn": Task("benchmarks.models:SensorCNN", windows, 6),
}


class Profiles:
    """The study."""

    goal = f"every shipped profile that trains gets a variant that fits, at most {100 * POINT:g} points below the whole model"

    def rows(self, asked: Asked) -> Iterator[Sequence[Row]]:
        """All rows of a task and a seed at once. Raises EdgeflError."""
        if "EDGEFL_DATA" not in os.environ:
            raise DataError("the data sets are missing", remedy="Set EDGEFL_DATA to the directory that has mnist and hapt_raw")
        torch.set_num_threads(1)
        for name, task in TASKS.items():
            for seed in range(asked.seeds):
                if asked.only in name:
                    yield measured(name, task, seed, task.data(Path(os.environ["EDGEFL_DATA"]), seed))

    def settings(self) -> Mapping[str, object]:
        """How each model is trained, and the budgets of the profiles."""
        known = shipped_profiles()
        budgets = {name: {"storage": known[name].storage_bytes, "memory_mb": known[name].memory_mb} for name in PROFILES}
        return {"profiles": budgets, **{name: repr(asdict(task)) for name, task in TASKS.items()}}

    def show(self, rows: Sequence[Row]) -> None:
        """Means over the seeds; names of all variants."""
        print(f"\n{'':30}{'accuracy':>9}{'+-':>8}{'points':>8}{'bytes':>11}{'stored':>12}{'peak MiB':>9}{'step ms':>9}  variants")
        found = by_label(rows)
        for label, of in found.items():
            whole = mean(found[f"{label.split()[0]} fp32"], "accuracy")
            peak, accuracy = mean(of, "peak_bytes") / 2**20, mean(of, "accuracy")
            print(
                f"{label:30}{accuracy:>9.4f}{spread(of, 'accuracy'):>8.4f}{100 * (accuracy - whole):>8.2f}"
                f"{mean(of, 'bytes'):>11,.0f}{mean(of, 'footprint'):>12,.0f}{peak:>9.0f}{mean(of, 'step_ms'):>9.2f}  "
                + " ".join(dict.fromkeys(str(row["variant"]) for row in of))
            )


def measured(name: str, task: Task, seed: int, data: Data) -> list[Row]:
    """The rows of one seed. Raises EdgeflError."""
    began = time.monotonic()
    source = load_factory(task.model)
    module = trained(source, data.train, task.passes, seed)
    parent = vector_of(module)

    def say(text: str) -> None:
        print(f"  {time.monotonic() - began:5.0f} s  {text}", flush=True)

    def row(label: str, accuracy: float, length: int, variant: str, **more: object) -> Row:
        say(f"{name} {label}: {accuracy:.4f}, {variant}")
        return {"label": f"{name} {label}", "seed": seed, "accuracy": accuracy, "bytes": length, "variant": variant, **more}

    rows = [row("fp32", accuracy_of(source, 1.0, parent, data.test), 4 * len(parent), "w1-fp32")]
    known, whole = shipped_profiles(), rows[0]["accuracy"]
    with TemporaryDirectory(prefix="edgefl-") as directory:
        blobs = BlobStore(Path(directory))
        local = data.train.take(np.random.default_rng([seed, 1]).permutation(len(data.train))[:LOCAL])
        workshop = Workshop(
            source, parent, blobs, batch=BATCH, holdout=data.held, known=known.values(), on_progress=say,
            retraining=Retraining(local, steps=task.steps),
        )  # fmt: skip
        for profile in (known[each] for each in PROFILES):
            made = workshop.make(profile)
            accuracy = accuracy_of(made.cut.source, made.candidate.width, decoded(made, blobs), data.test)
            rows.append(row(profile.name, accuracy, made.file_bytes, made.candidate.name, **about(made), whole=whole))
        offered = workshop.offered
    full = candidates([nested_cuts(source)[0].structure], {})[0].footprint
    for share in SHARES:
        for method, chosen in choices(offered, Budget(share * full)):
            cut = offered.cuts[chosen.structure.name]
            file = encode_weights(cut.slice(parent), chosen.layout, chosen.precision)
            accuracy = accuracy_of(cut.source, chosen.width, decode_weights(file, chosen.layout), data.test)
            label = f"1/{round(1 / share)} {method}"
            rows.append(row(label, accuracy, len(file), chosen.name, footprint=chosen.footprint, predicted=chosen.accuracy))
    return rows


def about(made: Made) -> Row:
    """What proves the fit of a variant, and why it is no better."""
    profile, fit = made.profile, made.fit
    if made.candidate.footprint > profile.storage_bytes or fit.peak_bytes > profile.memory_mb << 20:
        raise FitError(
            f"{made.candidate.name} does not fit {profile.name}", found=f"{made.candidate.footprint}, {fit.peak_bytes}"
        )
    return {
        "footprint": made.candidate.footprint,
        "storage": profile.storage_bytes,
        "peak_bytes": fit.peak_bytes,
        "memory_mb": fit.memory_mb,
        "step_ms": fit.step_ms,
        "engine": made.engine,
        "parameters": made.candidate.layout.size,
        "predicted": made.candidate.accuracy,
        "held_out": made.accuracy,
        "reason": made.planned.reason,
        "frontier": [(one.name, one.footprint, one.accuracy) for one in made.planned.frontier],
    }


def decoded(made: Made, blobs: BlobStore) -> Float32:
    """A variant's weights as its boards decode them."""
    return decode_weights(blobs.get(made.files[-1].sha256), made.candidate.layout)


def choices(offered: Offered, budget: Budget) -> Iterator[tuple[str, Candidate]]:
    """What each way of choosing takes under a budget of storage."""
    structures = [cut.structure for cut in offered.cuts.values()]
    widths = [structure for structure in structures if structure.name.startswith("w")]
    yield "widest", choose("board", budget, candidates(widths, {}))[0]
    yield "planned", choose("board", budget, candidates(structures, {}, predicted=offered.predicted))[0]


def trained(source: ModelSource, examples: Examples, passes: int, seed: int) -> nn.Module:
    """A model after some passes of Adam with a falling rate."""
    module = set_training(source.build(seed=seed), on=True)
    steps = passes * -(-len(examples) // TRAIN_BATCH)
    optimizer = torch.optim.Adam(module.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    x, y = torch.from_numpy(examples.x), torch.from_numpy(examples.y)
    for number in range(passes):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1000 * seed + number))
        for chosen in torch.split(order, TRAIN_BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[chosen]), y[chosen]).backward()  # type: ignore[no-untyped-call] # untyped in torch
            optimizer.step()
            schedule.step()
    return module
