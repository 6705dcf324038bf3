"""Proof that an export computes what torch computes, made before anything is sent: the real engine on the real files.

Model: loss, logits and the parameters after one step are compared for a full and for a partly filled batch of random
examples. Two correct programs may still differ where two inputs of a pooling window, or a ReLU's input and zero, are equal up
to rounding: then the gradient takes another path. A comparison that fails is therefore repeated on other examples, and only
a difference that stays is an error. The engine runs in a process of its own, as on a board, so that its memory can be told.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from edgefl.engine.probe import Result, probe
from edgefl.errors import ModelError
from edgefl.examples import Examples
from edgefl.export.graphs import ExportedGraphs, variant_files
from edgefl.export.models import ModelSource, load_vector, vector_of
from edgefl.layout import Float32

TOLERANCE = 1e-4
ATTEMPTS = 3
LEARNING_RATE = 0.05


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
        engine: `portable` or `ort-training`.
        batch: rows of a training step.

    Raises:
        ModelError: loss, logits or parameters differ by more than `TOLERANCE` on every attempt.
        EngineError: the graphs do not load or run on this machine.
    """
    module = source.build(width)
    start = vector_of(module)
    sizes = sorted({batch, max(1, batch // 2)})
    trials = [_examples(source, rows, seed=1000 * attempt + rows) for rows in sizes for attempt in range(ATTEMPTS)]
    with tempfile.TemporaryDirectory(prefix="edgefl-") as directory:
        files = variant_files(source, exported, engine, batch, Path(directory))
        answer = probe(files, start, trials, LEARNING_RATE)
    differences = []
    for trial, result in zip(trials, answer.results, strict=True):
        load_vector(module, start)
        differences.append(_differences(module, trial, result))
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


def torch_step(module: nn.Module, examples: Examples, learning_rate: float) -> tuple[Float32, float]:
    """One SGD step of the module in torch: logits `(n, classes)` and mean loss, both from before it."""
    module.zero_grad(set_to_none=True)
    logits = module(torch.from_numpy(examples.x))
    loss = functional.cross_entropy(logits, torch.from_numpy(examples.y))
    loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
    with torch.no_grad():
        for value in module.parameters():
            if value.grad is not None:
                value.sub_(value.grad, alpha=learning_rate)
    before: Float32 = logits.detach().numpy()
    return before, loss.item()


def _examples(source: ModelSource, rows: int, seed: int) -> Examples:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, *source.input_shape)).astype(np.float32)
    return Examples(x, rng.integers(0, source.classes, rows))


def _differences(module: nn.Module, examples: Examples, result: Result) -> dict[str, float]:
    """Largest absolute difference of each result. NaN compares as infinitely different."""
    logits, loss = torch_step(module, examples, LEARNING_RATE)
    found = {
        "logits": _values(result.logits).reshape(logits.shape) - logits,
        "evaluated loss": np.array(result.evaluated - loss),
        "training loss": np.array(result.trained - loss),
        "parameters": _values(result.vector) - vector_of(module),
    }
    return {what: float(np.abs(d).max()) if np.isfinite(d).all() else float("inf") for what, d in found.items()}


def _values(data: bytes) -> npt.NDArray[np.float32]:
    return np.frombuffer(data, dtype=np.float32)
