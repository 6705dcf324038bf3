"""Lengths, products and directions of sparse updates, without ever making them dense two at a time.

Memory: of all updates together, plus one dense vector. Products are exact to float64 rounding.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgefl.codec.sparsify import Sparse
from edgefl.layout import Float32

Vector = npt.NDArray[np.float64]


def lengths(updates: Sequence[Sparse]) -> Vector:
    """Euclidean length of each, shape `(k,)`."""
    return np.array([np.sqrt(np.square(update.values.astype(np.float64)).sum()) for update in updates])


def products(updates: Sequence[Sparse]) -> npt.NDArray[np.float64]:
    """Scalar product of every two, shape `(k, k)`."""
    count = len(updates)
    found = np.zeros((count, count))
    if count == 0:
        return found
    dense = np.zeros(updates[0].size, dtype=np.float64)
    for row, update in enumerate(updates):
        dense[update.positions] = update.values
        for column in range(row, count):
            other = updates[column]
            found[row, column] = found[column, row] = float(dense[other.positions] @ other.values)
        dense[update.positions] = 0.0
    return found


def within(update: Sparse, part: slice) -> Sparse:
    """What an update says of the coordinates of one tensor; the others are nothing."""
    first, last = update.positions.searchsorted((part.start, part.stop))
    return Sparse(update.positions[first:last], update.values[first:last], update.size)


def products_with(updates: Sequence[Sparse], vector: Float32) -> Vector:
    """Scalar product of each with a dense vector, on the coordinates that the update sends: shape `(k,)`."""
    return np.array([float(vector[update.positions].astype(np.float64) @ update.values) for update in updates])


def agreement(gram: npt.NDArray[np.float64], weights: Vector) -> Vector:
    """Cosine of each update with the weighted sum of all others, shape `(k,)`, in [-1, 1]; 0 where one of them is nothing.

    Args:
        gram: scalar products of every two.
        weights: of the sum.
    """
    with_sum = gram @ weights
    whole = float(weights @ with_sum)
    own = np.diag(gram)
    with_others = with_sum - weights * own
    others = np.sqrt(np.maximum(whole - 2.0 * weights * with_sum + weights**2 * own, 0.0))
    length = np.sqrt(own) * others
    cosine: Vector = np.clip(np.divide(with_others, length, out=np.zeros(len(own)), where=length > 0.0), -1.0, 1.0)
    return cosine
