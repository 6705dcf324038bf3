"""Proof that an export computes what torch computes, made before anything is sent: the real engine on the real files.

Model: loss, outputs and, of an engine that trains, the parameters after two steps are compared for a full and for a partly filled
batch of random examples. Two correct programs may still differ where two inputs of a pooling window, or a ReLU's input and zero,
are equal up to rounding: then the gradient takes another path. A comparison that fails is therefore repeated on other examples,
and only a difference that stays is an error. The engine runs in a process of its own, as on a board, so that its memory can be
told.
"""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgefl.engine.probe import STEPS, Result, probe
from edgefl.errors import ModelError
from edgefl.examples import Examples
from edgefl.export.graphs import ExportedGraphs, variant_files
from edgefl.export.losses import EVALUATED, loss_in_torch
from edgefl.export.models import ModelSource
from edgefl.export.tensors import layout_of, load_vector, outputs_of, set_training, trained_outputs_of, vector_of
from edgefl.layout import Float32
from edgefl.profile import trains
from edgefl.recipe import BETAS, EPSILON, MOMENTUM, WEIGHT_DECAY, Recipe

TOLERANCE = 1e-4
ATTEMPTS = 3
LEARNING_RATE = 0.02
PROXIMAL = 0.1
MUTUAL = 0.3
ROUNDING = 1e-4
"""A gradient that is smaller than this share of the largest one may be rounding."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What a verification measured.

    Attributes:
        difference: largest absolute difference from torch.
        peak_rss: bytes of a process that predicts, evaluates and trains with this variant on this machine.
        step_seconds: of one full training step on one core of this machine.
    """

    difference: float
    peak_rss: int
    step_seconds: float


def verify_graphs(source: ModelSource, width: float, exported: ExportedGraphs, *, engine: str, batch: int) -> Verified:
    """Compare an export with torch.

    Args:
        source: the model.
        width: that was exported.
        exported: what `export_graphs` gave for this width, engine and batch.
        engine: `portable`, `ort-training` or `inference`.
        batch: rows of a training step.

    Raises:
        ModelError: loss, logits or parameters differ by more than `TOLERANCE` on every attempt.
        EngineError: the graphs do not load or run on this machine.
    """
    module = source.build(width)
    start = vector_of(module)
    taught = trains(engine)
    normalised = taught and any(tensor.role == "state" for tensor in exported.layout.tensors)
    least = 2 if normalised else 1  # a single value has no variance
    if batch < least:
        raise ModelError(
            f"model {source.name!r} cannot be trained with batches of {batch}",
            expected=f"at least {least}, because of BatchNorm",
            remedy="Push with a larger --batch, or replace BatchNorm by GroupNorm",
        )
    sizes = sorted({batch, max(least, batch // 2)})
    trials = [random_examples(source, rows, seed=1000 * attempt + rows) for rows in sizes for attempt in range(ATTEMPTS)]
    with tempfile.TemporaryDirectory(prefix="edgefl-") as directory:
        files = variant_files(source, exported, engine, batch, Path(directory))
        answer = probe(files, start, trials, LEARNING_RATE, *_weights(source.recipe))
    differences = []
    for trial, result in zip(trials, answer.results, strict=True):
        load_vector(module, start)
        differences.append(_differences(source, module, trial, result, taught=taught))
    worst = 0.0
    for place in range(0, len(trials), ATTEMPTS):
        best = min(differences[place : place + ATTEMPTS], key=lambda found: max(found.values()))
        what = max(best, key=lambda key: best[key])
        if best[what] > TOLERANCE:
            raise ModelError(
                f"the export of model {source.name!r} at width {width:g} for {engine} does not compute what torch computes",
                expected=f"differences up to {TOLERANCE:g}",
                found=f"{best[what]:.3g} in the {what} of a batch of {len(trials[place])}",
                remedy="Report this with the model; a simpler layer in its place may help",
            )
        worst = max(worst, best[what])
    return Verified(worst, answer.peak_rss, answer.step_seconds)


class Reference:
    """A module that trains in torch as its recipe says: what both engines are compared with.

    Attributes:
        module: as built by its source; changed by every step.
        smallest: per coordinate, the smallest size of its gradient so far, relative to the largest of all gradients.
    """

    def __init__(
        self, source: ModelSource, module: nn.Module, *, learning_rate: float, proximal: float = 0.0, mutual: float = 1.0
    ) -> None:
        self.module = module
        self._loss, self._judge = source.recipe.loss, EVALUATED[source.recipe.loss]
        self._proximal, self._mutual = proximal, mutual
        self._trained = [value for value in module.parameters() if value.requires_grad]
        self._start = [value.detach().clone() for value in self._trained]
        self._optimizer = _optimizer(source.recipe, self._trained, learning_rate)
        self.smallest = np.full(layout_of(module).size, np.inf, dtype=np.float32)

    def step(self, examples: Examples) -> float:
        """One step on examples that are shaped for the model; the loss before it."""
        self._optimizer.zero_grad()
        outputs = trained_outputs_of(self.module, torch.from_numpy(examples.x))
        loss = loss_in_torch(self._loss, outputs, torch.from_numpy(examples.y), self._mutual)
        value = loss.item()
        if self._proximal:
            off = sum((p - start).square().sum() for p, start in zip(self._trained, self._start, strict=True))
            loss = loss + off * (self._proximal / 2.0)
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        gradients = {n: v.grad.detach().numpy() for n, v in self.module.named_parameters() if v.grad is not None}
        largest = max(float(np.abs(g).max()) for g in gradients.values()) or 1.0
        for name, view in layout_of(self.module).views(self.smallest).items():
            if name in gradients:
                np.minimum(view, np.abs(gradients[name]) / largest, out=view)
        self._optimizer.step()
        return value

    def outputs(self, x: Float32) -> Float32:
        """What it predicts, `(n, k)`."""
        set_training(self.module, on=False)
        with torch.no_grad():
            found: Float32 = outputs_of(self.module, torch.from_numpy(x)).numpy()
        set_training(self.module, on=True)
        return found

    def evaluated(self, examples: Examples) -> float:
        """Mean loss in evaluation mode."""
        return self._judge(torch.from_numpy(self.outputs(examples.x)), torch.from_numpy(examples.y)).item()


def _weights(recipe: Recipe) -> tuple[float, float]:
    """Of the proximal term and of mutual teaching, as far as a round can choose them."""
    return PROXIMAL if recipe.proximal else 0.0, MUTUAL if recipe.mutual else 1.0


def _optimizer(recipe: Recipe, parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=learning_rate, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY)
    return torch.optim.SGD(parameters, lr=learning_rate, momentum=MOMENTUM if recipe.optimizer == "momentum" else 0.0)


def random_examples(source: ModelSource, rows: int, seed: int) -> Examples:
    """Normally distributed inputs with labels or targets of the source's loss."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, *source.input_shape)).astype(np.float32)
    if source.recipe.loss == "mse":
        return Examples(x, rng.standard_normal((rows, source.classes)).astype(np.float32))
    if source.recipe.loss == "bce":
        return Examples(x, rng.integers(0, 2, (rows, source.classes)).astype(np.float32))
    return Examples(x, rng.integers(0, source.classes, rows))


def _differences(source: ModelSource, module: nn.Module, examples: Examples, result: Result, *, taught: bool) -> dict[str, float]:
    """Largest absolute difference of each result, those of training if there was any. NaN compares as infinitely different."""
    proximal, mutual = _weights(source.recipe)
    reference = Reference(source, module, learning_rate=LEARNING_RATE, proximal=proximal, mutual=mutual)
    outputs, evaluated = reference.outputs(examples.x), reference.evaluated(examples)
    found = {
        "logits": _values(result.logits).reshape(outputs.shape) - outputs,
        "evaluated loss": np.array(result.evaluated - evaluated),
    }
    if taught:
        loss, *_ = [reference.step(examples) for _ in range(STEPS)]
        # AdamW divides a gradient by its own size: where that is rounding alone, so is the step.
        firm = reference.smallest >= ROUNDING if source.recipe.optimizer == "adamw" else slice(None)
        found["training loss"] = np.array(result.trained - loss)
        found["parameters"] = (_values(result.vector) - vector_of(module))[firm]
    return {what: float(np.abs(d).max(initial=0.0)) if np.isfinite(d).all() else math.inf for what, d in found.items()}


def _values(data: bytes) -> npt.NDArray[np.float32]:
    return np.frombuffer(data, dtype=np.float32)
