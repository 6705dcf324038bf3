"""Labelled examples as every source gives them and every engine takes them.

`x` is float32, first axis the examples, the other axes the model's input shape; `y` is int64 class labels. Both are checked
once, here, so that nothing below has to.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgefl.errors import DataError
from edgefl.layout import Float32, Index


@dataclass(frozen=True, slots=True)
class Examples:
    """A set of labelled examples.

    Attributes:
        x: float32, shape `(n, *input_shape)`, finite.
        y: int64, shape `(n,)`, labels from 0.

    Raises:
        DataError: lengths differ, a type is wrong, a value is not finite, or a label is negative.
    """

    x: Float32
    y: Index

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or self.y.ndim != 1:
            raise DataError(
                "examples and labels do not belong together",
                expected=f"{len(self.x)} labels in one axis",
                found=f"an array of shape {self.y.shape}",
            )
        if self.x.dtype != np.float32 or self.y.dtype != np.int64:
            raise DataError("wrong types", expected="x float32 and y int64", found=f"{self.x.dtype} and {self.y.dtype}")
        if not np.isfinite(self.x).all():
            raise DataError("the examples hold NaN or infinite values", remedy="Clean the data before training on it")
        if len(self.y) and int(self.y.min()) < 0:
            raise DataError("negative class label", expected="labels from 0", found=str(int(self.y.min())))

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: npt.NDArray[np.integer]) -> "Examples":
        """The examples at these positions, in this order."""
        return Examples(self.x[rows], self.y[rows])

    def shaped(self, input_shape: tuple[int, ...], classes: int) -> "Examples":
        """The same examples in a model's input shape.

        Raises:
            DataError: the number of values per example or a label does not fit the model.
        """
        if int(np.prod(self.x.shape[1:])) != int(np.prod(input_shape)):
            raise DataError(
                "the data does not fit the model",
                expected=f"examples of shape {input_shape}",
                found=f"{tuple(self.x.shape[1:])}",
                remedy="Give the device a source of the model's input shape, or push a model that takes this data",
            )
        if len(self.y) and int(self.y.max()) >= classes:
            raise DataError("label out of range", expected=f"0 to {classes - 1}", found=str(int(self.y.max())))
        return Examples(np.ascontiguousarray(self.x.reshape(-1, *input_shape)), self.y)
