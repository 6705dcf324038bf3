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
from edgefl.recipe import PLAIN, Recipe


@dataclass(frozen=True, slots=True)
class VariantFiles:
    """A variant on disk, ready to load.

    Attributes:
        engine: `portable`, `ort-training` or `inference`.
        layout: of the flat vector.
        input_shape: of one example.
        classes: number of outputs.
        batch: rows of the training graph.
        paths: file by role (`train`, `eval`, `infer`; for ort-training also `optimizer`, `checkpoint`; for inference no `train`).
        recipe: loss and optimiser of the graphs.
    """

    engine: str
    layout: Layout
    input_shape: tuple[int, ...]
    classes: int
    batch: int
    paths: Mapping[str, Path]
    recipe: Recipe = PLAIN


@dataclass(frozen=True, slots=True)
class Trained:
    """Outcome of local training.

    Attributes:
        steps: of the optimiser.
        loss_before, loss_after: mean training loss of the first and of the last epoch.
        step_seconds: of the fastest step on a full batch, on any batch if none was full.
    """

    steps: int
    loss_before: float
    loss_after: float
    step_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How good the parameters are on `count` examples.

    Attributes:
        loss: mean of the recipe's loss; for `mse` this is the mean squared error.
        accuracy: share of right answers in [0, 1]; None for `mse`, where no answer is right or wrong.
        count: number of examples.
    """

    loss: float
    accuracy: float | None
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

    def train(
        self,
        examples: Examples,
        *,
        epochs: int,
        learning_rate: float,
        rng: np.random.Generator,
        proximal: float = 0.0,
        mutual: float = 1.0,
        weights: Float32 | None = None,
        kept: Float32 | None = None,
    ) -> Trained:
        """Run `epochs` passes of mini-batches; the last, smaller batch of a pass counts exactly as what it is.

        The optimiser starts afresh: its state is zero at the first step. Frozen tensors do not change; state is updated.

        Args:
            examples: of the device.
            epochs: at least 1.
            learning_rate: of the recipe's optimiser.
            rng: of the shuffling.
            proximal: FedProx's mu: the gradient gets `mu * (parameters - parameters at the start of this call)`.
            mutual: weight of what exits learn of each other, at least 0; 1 unless the recipe lets it be chosen.
            weights: of the examples, positive, shape `(n,)`: a step's loss is their weighted mean; None: all count the same.
            kept: 1 for each parameter that stays in training and 0 for each that is 0 and stays so, shape `(layout.size,)`;
                None: all stay. The optimiser goes through the others as if the model did not have them.

        Raises:
            EngineError: the runtime failed; `proximal` is above 0 and the recipe has no proximal term; `mutual` is not 1 and the
                recipe cannot choose it; or there are weights and the engine knows none.
            DataError: the examples do not fit the model, or there are none.
        """
        ...

    def evaluate(self, examples: Examples) -> Evaluation:
        """Loss and accuracy over all examples."""
        ...

    def scores(self, examples: Examples) -> Float32:
        """The loss of each example, shape `(n,)`: of an autoencoder the anomaly score, the mean squared error of its output."""
        ...

    def predict(self, x: Float32) -> Float32:
        """Outputs before any activation of the loss (logits), shape `(n, classes)`, of inputs of shape `(n, *input_shape)`."""
        ...


def batches(count: int, batch: int, epochs: int, rng: np.random.Generator) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Epoch number and row positions of each mini-batch: a fresh permutation per epoch, the last batch may be smaller.

    Both engines draw from here, so that the same seed gives the same batches.
    """
    for epoch in range(epochs):
        order = rng.permutation(count)
        for start in range(0, count, batch):
            yield epoch, order[start : start + batch]
