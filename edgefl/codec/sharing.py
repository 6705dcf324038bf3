"""Few values in place of many: the centroids that a set of weights shares.

Model: k-means in one dimension (Lloyd 1982), started from evenly spread centroids, which keep the few large weights that matter
most (Han, Mao and Dally, Deep Compression, ICLR 2016, section 3.2, https://arxiv.org/abs/1510.00149). One more centroid is
pinned at 0: what has been pruned stays pruned, and what is nearer to 0 than to any other joins it.

How many centroids there are is chosen: the fewest whose squared error is at most `TOLERANCE` of the weights' own mean square.

Rules: a set that has few distinct values already keeps them exactly. Centroids that are chosen here are float16 where these
reach.
"""

import numpy as np
import numpy.typing as npt

from edgefl.layout import Float32

MAX_CENTROIDS = 63
"""Beside 0: an index takes at most six bits."""
SIZES = (2, 4, 8, 12, 16, 24, 32, 48, MAX_CENTROIDS)
TOLERANCE = 2e-3
"""About what 32 levels of a normal distribution come to."""
PASSES = 30

Doubles = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


def shared_values(values: Float32, tolerance: float = TOLERANCE, most: int = MAX_CENTROIDS) -> Float32:
    """The values that a set of weights is to share, zero among them.

    Args:
        values: float32, any shape, finite.
        tolerance: mean squared error in parts of the mean square.
        most: centroids beside 0, 1 to `MAX_CENTROIDS`.

    Returns:
        float32, ascending, distinct, 0 among them; all distinct values of the set if there are no more than `most` beside 0.
    """
    nonzero = values[values != 0].astype(np.float64)
    ascending = np.sort(nonzero)
    distinct = np.unique(ascending) if len(ascending) else ascending
    if len(distinct) <= most:
        return _with_zero(distinct.astype(np.float32))
    sums = np.concatenate([[0.0], np.cumsum(ascending)])
    allowed = tolerance * float(np.square(ascending).sum())
    for size in sorted({*(s for s in SIZES if s < most), most}):
        table = storable(_with_zero(_lloyd(ascending, sums, size).astype(np.float32)))
        if float(np.square(table[nearest(table, ascending)] - ascending).sum()) <= allowed:
            break
    return table


def nearest(table: Float32, values: npt.NDArray[np.floating]) -> Index:
    """The place of the nearest entry of an ascending table for each value; of two equally near the lower one."""
    wide = table.astype(np.float64)
    return np.searchsorted((wide[1:] + wide[:-1]) / 2, values, side="left")


def storable(table: Float32) -> Float32:
    """The same table rounded to float16; as it is where that would not do: out of range, subnormal, no longer distinct."""
    magnitudes = np.abs(table[table != 0])
    half = np.finfo(np.float16)
    if len(magnitudes) and (magnitudes.max() > half.max or magnitudes.min() < half.smallest_normal):
        return table
    rounded = table.astype(np.float16).astype(np.float32)
    return rounded if len(np.unique(rounded)) == len(table) else table


def _with_zero(centroids: Float32) -> Float32:
    return np.unique(np.append(centroids, np.float32(0)))


def _lloyd(ascending: Doubles, sums: Doubles, size: int) -> Doubles:
    """At most `size` centroids of sorted values, 0 not among them but in competition with them."""
    centroids = np.linspace(ascending[0], ascending[-1], size)
    for _ in range(PASSES):
        table = np.unique(np.append(centroids, 0.0))
        edges = np.searchsorted(ascending, (table[1:] + table[:-1]) / 2, side="left")
        ends = np.concatenate([[0], edges, [len(ascending)]])
        counts = np.diff(ends)
        used = (counts > 0) & (table != 0)
        moved = (np.diff(sums[ends])[used]) / counts[used]
        if len(moved) == len(centroids) and np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids
