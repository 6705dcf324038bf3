"""How small the weights of LeNet-300-100 and LeNet-5 become on MNIST, and what that costs in accuracy, with labels and without.

Model: the original is trained on 50,000 of the 60,000 training images; the other 10,000 stand for images of the place where the
model is to work: nobody has labelled them. Methods that retrain with labels get the first, those without labels only the second.
Accuracy is on the 10,000 test images, of the weights as a device decodes them; bytes are those of the weights file.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.rows import Asked, Row, by_label, mean, spread
from edgefl.codec.weights import Precision, decode_weights, encode_weights
from edgefl.errors import DataError
from edgefl.examples import Examples, unlabelled
from edgefl.export.tensors import layout_of, load_vector, outputs_of, set_training, vector_of
from edgefl.layout import Float32
from edgefl.retrain.batches import Augmentation
from edgefl.retrain.centroids import Sharing
from edgefl.retrain.compression import Compression, compressed
from edgefl.retrain.flat import FlatModule
from edgefl.retrain.objective import Distillation, Labels, Objective, Outputs
from edgefl.retrain.pruning import Pruning
from edgefl.retrain.training import Pruned, Schedule, train
from edgefl.sources.idx import IdxSource

GOAL = "at most 1/40 of fp32's bytes at most 0.1 points below it; without labels within 0.1 points of with labels"
HELD_OUT = 10_000
THREADS = 1


class LeNet300(nn.Module):
    """784-300-100-10: 266,610 parameters (LeCun et al. 1998)."""

    input_shape = (1, 28, 28)

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(784, 300), nn.Linear(300, 100), nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(n, 10)`."""
        logits: Tensor = self.fc3(self.fc2(self.fc1(x.flatten(1)).relu()).relu())
        return logits


class LeNet5(nn.Module):
    """20 and 50 maps of 5x5 without padding, 500 units: 431,080 parameters, as in Caffe's example."""

    input_shape = (1, 28, 28)

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.pool = nn.MaxPool2d(2)
        self.fc1, self.fc2 = nn.Linear(800, 500), nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(n, 10)`."""
        x = self.pool(self.conv2(self.pool(self.conv1(x))))
        logits: Tensor = self.fc2(self.fc1(x.flatten(1)).relu())
        return logits


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the study, and how long it is trained.

    Attributes:
        build: makes it.
        original: training of the original; about as long as training and retraining of what becomes of it, where that is long, so
            that retraining with labels is not merely more training.
        pruning: how much is pruned.
        pruned, shared: retraining of both stages; equally long for all methods.
        shift: pixels by which images are moved, in all trainings: what the original has never seen it cannot teach.
    """

    build: Callable[[], nn.Module]
    original: Schedule
    pruning: Pruning
    pruned: Schedule
    shared: Schedule
    shift: int


MODELS: Mapping[str, Model] = {
    "LeNet-300-100": Model(LeNet300, Schedule(24000), Pruning(0.9), Schedule(10000), Schedule(3000, 128, 2e-4), 1),
    "LeNet-5": Model(LeNet5, Schedule(2500, 64), Pruning(0.92), Schedule(2000, 64), Schedule(500, 64, 2e-4), 2),
}
SHARING = Sharing(tolerance=4e-3, most=31)
ROUNDED_RATE = 5e-4
"""Learning rate of ternary weights, which are trained as long as pruning takes."""


@dataclass(frozen=True, slots=True)
class Method:
    """How the weights become small.

    Attributes:
        precision: of the file.
        objective: of retraining; None for none.
        small: whether they are pruned, and share values or are rounded to the precision.
    """

    precision: Precision
    objective: Objective | None = None
    small: bool = False


METHODS: Mapping[str, Method] = {
    **{precision.value: Method(precision) for precision in (Precision.FP32, Precision.INT8, Precision.INT4, Precision.TERNARY)},
    "pruned+codebook, not retrained": Method(Precision.CODEBOOK, None, small=True),
    "pruned+codebook, labelled": Method(Precision.CODEBOOK, Labels(), small=True),
    "pruned+codebook, unlabelled": Method(Precision.CODEBOOK, Distillation(2.0), small=True),
    "pruned+codebook, unlabelled, squared error": Method(Precision.CODEBOOK, Outputs(), small=True),
    "pruned+ternary, unlabelled": Method(Precision.TERNARY, Distillation(2.0), small=True),
}


@dataclass(frozen=True, slots=True)
class Digits:
    """MNIST in three parts that share no image."""

    labelled: Examples
    unlabelled: Examples
    test: Examples


def digits(seed: int) -> Digits:
    """The parts; which training images are held out depends on the seed.

    Raises:
        DataError: EDGEFL_DATA does not name a directory with MNIST.
    """
    root = os.environ.get("EDGEFL_DATA")
    if not root:
        raise DataError("EDGEFL_DATA is not set", remedy="Let it name the directory that holds mnist/")
    every, test = (IdxSource(Path(root) / "mnist", None, split).load().shaped((1, 28, 28), 10) for split in ("train", "test"))
    order = np.random.default_rng([seed, 5]).permutation(len(every))
    held_out = every.take(order[:HELD_OUT])
    return Digits(every.take(order[HELD_OUT:]), unlabelled(held_out.x), test)


class CompressLenet:
    """The study as `benchmarks.results` runs it."""

    goal = GOAL

    def rows(self, asked: Asked) -> Iterator[Sequence[Row]]:
        """A row for each model, seed and method whose label contains what was asked for. Raises EdgeflError."""
        torch.set_num_threads(THREADS)  # one thread, so that sums have one order
        yield from measured(asked.seeds, asked.only)

    def settings(self) -> Mapping[str, object]:
        """How each model is trained and retrained."""
        return {name: {"settings": repr(model), "sharing": repr(SHARING)} for name, model in MODELS.items()}

    def show(self, rows: Sequence[Row]) -> None:
        """Means over the seeds."""
        print(f"\n{'':48}{'accuracy':>10}{'+-':>8}{'bytes':>10}{'1/':>7}{'zeros':>8}{'seconds':>9}")
        for label, found in by_label(rows).items():
            print(
                f"{label:48}{mean(found, 'accuracy'):>10.4f}{spread(found, 'accuracy'):>8.4f}{mean(found, 'bytes'):>10.0f}"
                f"{mean(found, 'ratio'):>7.1f}{mean(found, 'zeros'):>8.3f}{mean(found, 'seconds'):>9.0f}"
            )


def measured(seeds: int, only: str) -> Iterator[Sequence[Row]]:
    """The rows, one by one."""
    for name, model in MODELS.items():
        methods = {label: method for label, method in METHODS.items() if only in f"{name} {label}"}
        for seed in range(seeds if methods else 0):
            data = digits(seed)
            began = time.monotonic()
            original = trained(model, data.labelled, seed)
            print(f"  {name}, seed {seed}: trained in {time.monotonic() - began:.0f} s", flush=True)
            for label, method in methods.items():
                yield [_row(f"{name} {label}", seed, model, original, method, data)]


def trained(model: Model, examples: Examples, seed: int) -> nn.Module:
    """The original."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flat = FlatModule(model.build())
    free, shifted = Pruned(flat, None), Augmentation(model.shift)
    train(flat, examples, Labels(), model.original, constraint=free, original=None, augmentation=shifted, seed=seed)
    return flat.module


def _row(label: str, seed: int, model: Model, original: nn.Module, method: Method, data: Digits) -> Row:
    began = time.monotonic()
    vector = vector_of(original)
    if method.small:
        vector = _small(model, original, method, data, seed)
    layout = layout_of(original)
    file = encode_weights(vector, layout, method.precision)
    accuracy = accuracy_of(model.build(), decode_weights(file, layout), data.test)
    took = time.monotonic() - began
    print(f"  {label}, seed {seed}: {accuracy:.4f}, {len(file)} bytes, {took:.0f} s", flush=True)
    return {
        "label": label,
        "seed": seed,
        "accuracy": accuracy,
        "bytes": len(file),
        "ratio": 4 * layout.size / len(file),
        "zeros": float((vector == 0).mean()),
        "seconds": took,
    }


def _small(model: Model, original: nn.Module, method: Method, data: Digits, seed: int) -> Float32:
    objective = method.objective or Outputs()
    examples = data.labelled if objective.needs_labels else data.unlabelled
    shift = Augmentation(model.shift)
    settings = Compression(model.pruning, model.pruned, SHARING, model.shared, objective, shift)
    if method.precision != Precision.CODEBOOK:
        rounded = replace(model.pruned, rate=ROUNDED_RATE)
        settings = Compression(model.pruning, model.pruned, None, rounded, objective, shift, method.precision)
    return compressed(original, examples if method.objective else None, settings, seed=seed)


def accuracy_of(module: nn.Module, vector: Float32, examples: Examples) -> float:
    """Part of the examples that a module with these weights classifies as labelled."""
    load_vector(module, vector)
    set_training(module, on=False)
    with torch.no_grad():
        right = [
            (outputs_of(module, torch.from_numpy(examples.x[i : i + 1000])).argmax(1).numpy() == examples.y[i : i + 1000]).sum()
            for i in range(0, len(examples), 1000)
        ]
    return float(sum(right)) / len(examples)
