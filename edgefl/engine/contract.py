"""What every training engine offers. Two exist (`portable`, `ort_training`); they give the same numbers.

The engine owns the parameters while it trains; outside they are one flat float32 vector in the manifest's layout. An engine
is used by one thread.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgefl.examples import Examples
from edgefl.layout import Float32, Layout


@dataclass(frozen=True, slots=True)
class VariantFiles:
    """A variant on disk, ready to load.

    Attributes:
        engine: `portable` or `ort-training`.
        layout: of the flat vector.
        input_shape: of one example.
        classes: number of outputs.
        batch: rows of the training graph.
        paths: file by role (`train`, `eval`, `infer`; for ort-training also `optimizer`, `checkpoint`).
    """

    engine: str
    layout: Layout
    input_shape: tuple[int, ...]
    classes: int
    batch: int
    paths: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class Trained:
    """Outcome of local training: optimiser steps, mean training loss of the first and of the last epoch."""

    steps: int
    loss_before: float
    loss_after: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Mean cross-entropy (natural log) and accuracy in [0, 1] over `count` examples."""

    loss: float
    accuracy: float
    count: int


class Engine(Protocol):
    """A loaded variant that can train, evaluate and predict."""

    @property
    def layout(self) -> Layout:
        """Layout of the flat vector."""
        ...

    def set_vector(self, vector: Float32) -> None:
        """Replace all parameters; the vector is copied. Raises ModelError when its length is wrong."""
        ...

    def vector(self) -> Float32:
        """A copy of all parameters."""
        ...

    def train(self, examples: Examples, *, epochs: int, learning_rate: float, rng: np.random.Generator) -> Trained:
        """Run `epochs` passes of mini-batch SGD; the last, smaller batch of a pass counts exactly as what it is.

        Raises:
            EngineError: the runtime failed.
            DataError: the examples do not fit the model, or there are none.
        """
        ...

    def evaluate(self, examples: Examples) -> Evaluation:
        """Loss and accuracy over all examples."""
        ...

    def predict(self, x: Float32) -> Float32:
        """Logits, shape `(n, classes)`, of inputs of shape `(n, *input_shape)`."""
        ...


def batches(count: int, batch: int, epochs: int, rng: np.random.Generator) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Epoch number and row positions of each mini-batch: a fresh permutation per epoch, the last batch may be smaller.

    Both engines draw from here, so that the same seed gives the same batches.
    """
    for epoch in range(epochs):
        order = rng.permutation(count)
        for start in range(0, count, batch):
            yield epoch, order[start : start + batch]
