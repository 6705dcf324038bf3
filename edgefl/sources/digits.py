"""Scikit-learn's digits (1,797 handwritten digits, 8 x 8, 17 grey levels), enlarged so that models for MNIST take them.

Each pixel becomes 3 x 3 and the image gets a border of 2 pixels: 28 x 28, values in [0, 1]. The data set comes with the library,
so demonstrations need no download (E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998).
"""

from dataclasses import dataclass

import numpy as np

from edgefl.errors import DataError
from edgefl.examples import Examples
from edgefl.layout import Index

TEST_EVERY = 5
"""Of each class, every fifth example in the library's order is for testing."""


@dataclass(frozen=True, slots=True)
class DigitsSource:
    """The digits' `train` (1,439) or `test` (358) part; x has shape `(n, 28, 28)`."""

    split: str = "train"

    def load(self) -> Examples:
        """The examples of the split. Raises DataError when scikit-learn is not installed."""
        try:
            from sklearn.datasets import load_digits  # noqa: PLC0415  only this source needs it, and it is large
        except ImportError as error:
            raise DataError(
                "the digits come with scikit-learn, which is not installed",
                found=str(error),
                remedy="Install scikit-learn, or use another source",
            ) from error
        bunch = load_digits()
        labels = bunch.target.astype(np.int64)
        images = np.pad(np.kron(bunch.images / 16.0, np.ones((3, 3))), ((0, 0), (2, 2), (2, 2))).astype(np.float32)
        rank = _rank_in_class(labels)
        chosen = np.flatnonzero((rank % TEST_EVERY == TEST_EVERY - 1) == (self.split == "test"))
        return Examples(images[chosen], labels[chosen])


def _rank_in_class(labels: Index) -> Index:
    """For each example, how many earlier ones have its label."""
    rank = np.empty_like(labels)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rank[rows] = np.arange(len(rows))
    return rank
