"""Lengths, products and directions of sparse updates, without ever making them dense two at a time.

Memory: of all updates together, plus one dense vector. Products are exact to float64 rounding.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgefl.codec.sparsify import Sparse
from edgefl.layout import Float32, Index

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


def cosines(updates: Sequence[Sparse], indexes: Sequence[Index | None]) -> npt.NDArray[np.float64]:
    """Cosine of every two on the coordinates that both variants have, shape `(k, k)`, in [-1, 1]; 0 where one says nothing there.

    Without that restriction a narrow variant would look unlike a wide one for the mere reason that it has less to say.

    Args:
        updates: in the parent's coordinates.
        indexes: what each one's variant covers; None for all.
    """
    length = _common_lengths(updates, indexes)
    both = length * length.T
    return np.clip(np.divide(products(updates), both, out=np.zeros_like(both), where=both > 0.0), -1.0, 1.0)


def _common_lengths(updates: Sequence[Sparse], indexes: Sequence[Index | None]) -> npt.NDArray[np.float64]:
    """Row i, column j: how long update i is on what the variant of update j covers."""
    found = np.repeat(lengths(updates)[:, np.newaxis], len(updates), axis=1)
    for index in {id(index): index for index in indexes if index is not None}.values():
        inside = np.zeros(updates[0].size, dtype=np.bool_)
        inside[index] = True
        columns = [column for column, other in enumerate(indexes) if other is index]
        for row, update in enumerate(updates):
            kept = update.values[inside[update.positions]].astype(np.float64)
            found[row, columns] = np.sqrt(np.square(kept).sum())
    return found
