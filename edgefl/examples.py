"""Examples as every source gives them and every engine takes them.

`x` is float32, first axis the examples, the other axes the model's input shape. `y` is what the model shall answer: int64 class
labels `(n,)`, or float32 targets `(n, k)`; with `k` 0 the examples have no labels, which is enough for an autoencoder. Both are
checked once, here, so that nothing below has to.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgefl.errors import DataError
from edgefl.layout import Float32
from edgefl.recipe import LABELLED

Targets = npt.NDArray[Any]
"""int64 `(n,)` or float32 `(n, k)`."""


@dataclass(frozen=True, slots=True)
class Examples:
    """A set of examples.

    Attributes:
        x: float32, shape `(n, *input_shape)`, finite.
        y: int64 labels from 0, shape `(n,)`; or finite float32 targets, shape `(n, k)`, k from 0.

    Raises:
        DataError: lengths differ, a type is wrong, a value is not finite, or a label is negative.
    """

    x: Float32
    y: Targets

    def __post_init__(self) -> None:
        labels = self.y.dtype != np.float32
        if len(self.x) != len(self.y) or self.y.ndim != (1 if labels else 2):
            raise DataError(
                "examples and labels do not belong together",
                expected=f"{len(self.x)} labels in one axis, or targets in two",
                found=f"an array of shape {self.y.shape}",
            )
        if self.x.dtype != np.float32 or (labels and self.y.dtype != np.int64):
            raise DataError("wrong types", expected="x float32, y int64 or float32", found=f"{self.x.dtype} and {self.y.dtype}")
        if not (np.isfinite(self.x).all() and (labels or np.isfinite(self.y).all())):
            raise DataError("the examples hold NaN or infinite values", remedy="Clean the data before training on it")
        if labels and len(self.y) and int(self.y.min()) < 0:
            raise DataError("negative class label", expected="labels from 0", found=str(int(self.y.min())))

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: npt.NDArray[np.integer]) -> "Examples":
        """The examples at these positions, in this order."""
        return Examples(self.x[rows], self.y[rows])

    def shaped(self, input_shape: tuple[int, ...], classes: int, loss: str = "cross-entropy") -> "Examples":
        """The same examples in a model's input shape, with `y` as its loss takes it.

        Args:
            input_shape: of one example.
            classes: number of the model's outputs.
            loss: of `recipe.LABELLED` gives int64 labels `(n,)`; `bce` and `mse` give float32 targets `(n, classes)`: labels
                become 0 and 1 (one output), ones in their columns (`bce`, several), or numbers (`mse`, one); a model of `mse`
                that has an output for every input is an autoencoder and gets the input itself where there are no targets.

        Raises:
            DataError: the number of values per example, a label or the targets do not fit the model.
        """
        if math.prod(self.x.shape[1:]) != math.prod(input_shape):
            raise DataError(
                "the data does not fit the model",
                expected=f"examples of shape {input_shape}",
                found=f"{tuple(self.x.shape[1:])}",
                remedy="Give the device a source of the model's input shape, or push a model that takes this data",
            )
        x = np.ascontiguousarray(self.x.reshape(-1, *input_shape))
        return Examples(x, self._labels(classes) if loss in LABELLED else self._targets(x, classes, loss))

    def _labels(self, classes: int) -> Targets:
        if self.y.ndim != 1:
            raise DataError("the data has no class labels", expected="int64 labels in one axis", found=f"shape {self.y.shape}")
        if len(self.y) and int(self.y.max()) >= classes:
            raise DataError("label out of range", expected=f"0 to {classes - 1}", found=str(int(self.y.max())))
        return self.y

    def _targets(self, x: Float32, outputs: int, loss: str) -> Targets:
        values = math.prod(x.shape[1:])
        if loss == "mse" and outputs == values > 1 and (self.y.ndim == 1 or not self.y.shape[1]):
            return x.reshape(len(x), values)
        if self.y.ndim == 1:
            if loss == "bce" and outputs > 1:
                targets = np.zeros((len(x), outputs), dtype=np.float32)
                targets[np.arange(len(x)), self._labels(outputs)] = 1.0
                return targets
            targets = self.y.astype(np.float32)[:, None]
        else:
            targets = self.y
        if targets.shape[1] != outputs:
            raise DataError("the targets do not fit the model", expected=f"{outputs} per example", found=f"{targets.shape[1]}")
        if loss == "bce" and targets.size and not (targets.min() >= 0.0 and targets.max() <= 1.0):
            raise DataError("target out of range", expected="values in [0, 1]", found=f"{targets.min():g} to {targets.max():g}")
        return targets


def unlabelled(x: Float32) -> Examples:
    """Examples without labels."""
    return Examples(x, np.zeros((len(x), 0), dtype=np.float32))
