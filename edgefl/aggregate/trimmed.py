"""The trimmed mean of each coordinate over the devices that sent it.

Yin et al. (ICML 2018, https://arxiv.org/abs/1803.01498) drop the largest and the smallest values of every coordinate. With sparse
updates most values are zeros that were not sent; trimming among them would delete honest signal and keep none. So only senders
are looked at: of m senders the floor(share * m) largest and smallest are dropped, and the mean of the rest stands for all m. The
sum is divided as the mean's is, by the weight of all devices that cover the coordinate: an honest coordinate keeps its size.

Memory: of all sent values.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgefl.aggregate.contract import Held
from edgefl.aggregate.geometry import Vector


def trimmed_sum(held: Sequence[Held], factors: Vector, share: float, size: int) -> npt.NDArray[np.float64]:
    """Sum over the updates of weight times value, the outer values of every coordinate replaced by the mean of the inner ones.

    Args:
        held: the updates.
        factors: on their values.
        share: fraction of senders to drop at each end, in [0, 0.5).
        size: coordinates of the parent.

    Returns:
        float64, shape `(size,)`.
    """
    places = np.concatenate([item.update.positions for item in held])
    values = np.concatenate([item.update.values * factor for item, factor in zip(held, factors, strict=True)]).astype(np.float64)
    weights = np.concatenate([np.full(len(item.update.positions), item.weight) for item in held])
    order = np.lexsort((weights, values, places))
    places, values, weights = places[order], values[order], weights[order]
    starts = np.flatnonzero(np.diff(places, prepend=-1))
    senders = np.diff(starts, append=len(places))
    rank = np.arange(len(places)) - np.repeat(starts, senders)
    dropped = np.repeat(np.floor(share * senders).astype(np.int64), senders)
    kept = (rank >= dropped) & (rank < np.repeat(senders, senders) - dropped)
    inner = np.add.reduceat(np.where(kept, weights * values, 0.0), starts)
    inner_weight = np.add.reduceat(np.where(kept, weights, 0.0), starts)
    whole_weight = np.add.reduceat(weights, starts)
    total = np.zeros(size, dtype=np.float64)
    total[places[starts]] = np.divide(inner * whole_weight, inner_weight, out=np.zeros(len(starts)), where=inner_weight > 0.0)
    return total
