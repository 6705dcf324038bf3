"""From arrays as files hold them to examples: one place for the types, the scale and the bound."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgefl.errors import DataError
from edgefl.examples import Examples

MAX_VALUES = 1 << 28
"""Numbers in one array: 1 GiB as float32. Checked against what a file declares, before anything is allocated."""

Array = npt.NDArray[Any]


def missing(path: Path) -> DataError:
    """The error for a file that is not there."""
    return DataError(f"data file {path} does not exist", remedy="Check the path in the source, or copy the data there")


def examples_of(x: Array, y: Array | None, where: str) -> Examples:
    """Examples from raw arrays: uint8 inputs become float32 in [0, 1], labels of shape `(n, 1)` become `(n,)`.

    Args:
        x: numbers, shape `(n, ...)` with n at least 1.
        y: integers, shape `(n,)` or `(n, 1)`, are labels; floats, shape `(n, k)`, are targets; None: unlabelled.
        where: names the data in errors.

    Raises:
        DataError: other types or shapes, values that are not finite in float32, or nothing there.
    """
    if x.dtype.kind not in "uif" or x.ndim < 2:
        raise DataError(f"inputs of {where} cannot be used", expected="numbers in two axes or more", found=_described(x))
    if y is None:
        y = np.zeros((len(x), 0), dtype=np.float32)
    targets = y.dtype.kind == "f" and y.ndim == 2
    if y.dtype.kind in "ui" and y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if not targets and (y.dtype.kind not in "ui" or y.ndim != 1):
        raise DataError(
            f"labels of {where} cannot be used", expected="integers in one axis, or floats in two", found=_described(y)
        )
    if len(x) != len(y) or len(x) == 0:
        raise DataError(
            f"{where} is incomplete", expected="one label for each example", found=f"{len(x)} examples, {len(y)} labels"
        )
    with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite, which Examples refuses
        values = x.astype(np.float32)
        answers = y.astype(np.float32 if targets else np.int64)
    if x.dtype == np.uint8:
        values /= np.float32(255)
    return Examples(values, answers)


def _described(array: Array) -> str:
    return f"{array.dtype} of shape {array.shape}"
