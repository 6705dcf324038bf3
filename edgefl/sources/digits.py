"""Scikit-learn's digits (1,797 handwritten digits, 8 x 8, 17 grey levels), enlarged so that models for MNIST take them.

Each pixel becomes 3 x 3 and the image gets a border of 2 pixels: 28 x 28, values in [0, 1]. The data set comes with the library,
so demonstrations need no download (E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998).

Rule: the library's file is read, the library is not loaded: that would take every process 1.4 seconds and the memory of scipy.
"""

import gzip
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgefl.errors import DataError
from edgefl.examples import Examples
from edgefl.layout import Index

TEST_EVERY = 5
"""Of each class, every fifth example in the library's order is for testing."""
SHAPE = (1797, 65)
REMEDY = "Install scikit-learn anew, or use another source"


@dataclass(frozen=True, slots=True)
class DigitsSource:
    """The digits' `train` (1,439) or `test` (358) part; x has shape `(n, 28, 28)`."""

    split: str = "train"

    def load(self) -> Examples:
        """The examples of the split. Raises DataError when scikit-learn is not installed, or its file is not as it should be."""
        table = _table()
        labels, pixels = table[:, -1], table[:, :-1].reshape(-1, 8, 8)
        images = np.pad(np.kron(pixels / 16.0, np.ones((3, 3))), ((0, 0), (2, 2), (2, 2))).astype(np.float32)
        rank = _rank_in_class(labels)
        chosen = np.flatnonzero((rank % TEST_EVERY == TEST_EVERY - 1) == (self.split == "test"))
        return Examples(images[chosen], labels[chosen])


def _table() -> npt.NDArray[np.int64]:
    """A row for each digit: 64 grey levels from 0 to 16, and the label."""
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "the digits come with scikit-learn, which is not installed", remedy="Install scikit-learn, or use another source"
        )
    path = Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            table: npt.NDArray[np.int64] = np.loadtxt(file, delimiter=",", dtype=np.int64, ndmin=2)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"scikit-learn's digits in {path} cannot be read", found=str(error), remedy=REMEDY) from error
    if table.shape != SHAPE:
        raise DataError(f"{path} does not hold scikit-learn's digits", expected=f"{SHAPE}", found=f"{table.shape}", remedy=REMEDY)
    return table


def _rank_in_class(labels: Index) -> Index:
    """For each example, how many earlier ones have its label."""
    rank = np.empty_like(labels)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rank[rows] = np.arange(len(rows))
    return rank
