"""Which coordinates of an update are sent: the largest, over the whole vector.

Top-k with error feedback: what is not sent stays in the device's residual and is added to the next update, so nothing is lost,
only delayed (Stich et al., Sparsified SGD with Memory, NeurIPS 2018, https://arxiv.org/abs/1809.07599; Sattler et al., Sparse
Ternary Compression, 2019, https://arxiv.org/abs/1903.02891).
"""

import math
from dataclasses import dataclass

import numpy as np

from edgefl.layout import Float32, Index


@dataclass(frozen=True, slots=True)
class Sparse:
    """A vector of `size` coordinates of which only some are not zero. Treat the arrays as read-only.

    Attributes:
        positions: int64, shape `(k,)`, strictly increasing, in `[0, size)`.
        values: float32, shape `(k,)`, finite.
        size: coordinates of the whole vector.
    """

    positions: Index
    values: Float32
    size: int

    def dense(self) -> Float32:
        """The whole vector, shape `(size,)`."""
        vector = np.zeros(self.size, dtype=np.float32)
        vector[self.positions] = self.values
        return vector

    def within(self, places: Index | None, size: int) -> "Sparse":
        """The same as a vector of more coordinates, which has these at some places.

        Args:
            places: int64, ascending, shape `(self.size,)`; None if they are all.
            size: of the larger vector.
        """
        return self if places is None else Sparse(places[self.positions], self.values, size)


def count_sent(size: int, sparsity: float) -> int:
    """k, the number of coordinates to send: the fraction `sparsity` in (0, 1] of `size`, rounded up, at least one."""
    # Rounding first keeps products such as 0.07 * 100 = 7.000000000000001 from becoming one coordinate more.
    return min(size, max(1, math.ceil(round(sparsity * size, 6))))


def top_k(vector: Float32, count: int) -> Index:
    """Positions of the `count` largest magnitudes, ascending; among equals the lower position wins.

    Zeros carry nothing and are left out, so fewer may come back; of a vector of zeros, position 0 comes back. O(n).
    """
    threshold = _threshold(vector, count) if count < len(vector) else np.float32(0)
    if threshold == 0:
        nonzero = np.flatnonzero(vector)  # those that are above it are no more than wanted
        return nonzero if len(nonzero) else np.zeros(1, dtype=np.int64)
    chosen = np.flatnonzero((vector >= threshold) | (vector <= -threshold))
    surplus = len(chosen) - count
    if surplus:
        ties = np.flatnonzero(np.abs(vector[chosen]) == threshold)
        chosen = np.delete(chosen, ties[len(ties) - surplus :])
    return chosen


def _threshold(vector: Float32, count: int) -> np.float32:
    """The magnitude of rank `count`, counted from 1, the largest first."""
    magnitude, place = np.abs(vector), len(vector) - count
    magnitude.partition(place)
    threshold: np.float32 = magnitude[place]
    return threshold
