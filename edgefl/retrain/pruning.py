"""Magnitude pruning: which weights become zero, and when.

Model: small weights are removed while training goes on, a few at first quickly and the last ones slowly (Zhu and Gupta 2017,
https://arxiv.org/abs/1710.01878); iterative pruning with retraining loses much less than pruning at once (Han et al. 2015,
https://arxiv.org/abs/1506.02626). What small means is the scope:

* `layer`: the same part of every tensor goes.
* `global`: magnitudes of all tensors are compared as they are.
* `lamp`: each weight's square is compared in parts of the squares of all weights of its tensor that are not smaller (Lee et al.
  2021, https://arxiv.org/abs/2010.07611), which finds how much each layer can spare and leaves none empty.

Rules: what is pruned are trained tensors with at least two axes and eight values per output channel, those that coarse files
quantise; a pruned weight stays pruned.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgefl.codec.precision import is_quantised
from edgefl.errors import ModelError
from edgefl.layout import Float32, Layout, Tensor

Kept = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pruning:
    """How much is pruned.

    Attributes:
        sparsity: part of the prunable weights that is zero in the end, in [0, 1).
        scope: `layer`, `global` or `lamp`.
        until: part of the training in which pruning happens; the rest of it only heals, in (0, 1].
        times: how often in it something is pruned, at least 1.

    Raises:
        ModelError: a number is out of range.
    """

    sparsity: float = 0.9
    scope: Literal["layer", "global", "lamp"] = "lamp"
    until: float = 0.6
    times: int = 30

    def __post_init__(self) -> None:
        if not (0.0 <= self.sparsity < 1.0 and 0.0 < self.until <= 1.0 and self.times >= 1):
            raise ModelError(
                "a pruning that cannot be", expected="sparsity in [0, 1), until in (0, 1], times from 1", found=f"{self}"
            )

    def share(self, progress: float) -> float:
        """Part of the prunable weights that is zero at a point of the training in [0, 1]: cubic, in `times` equal intervals."""
        whole = np.floor(min(1.0, progress / self.until) * self.times) / self.times
        return self.sparsity * float(1.0 - (1.0 - whole) ** 3)


def is_prunable(tensor: Tensor) -> bool:
    """Whether weights of this tensor may be removed."""
    return tensor.role == "trained" and is_quantised(tensor)


def kept(flat: Float32, layout: Layout, share: float, scope: str) -> Kept:
    """Which coordinates are left when this part of the prunable ones is removed; weights that are zero go first.

    Args:
        flat: float32, shape `(layout.size,)`.
        layout: of it.
        share: in [0, 1).
        scope: see `Pruning`.

    Returns:
        bool, shape `(layout.size,)`; true for everything that is not prunable.
    """
    left = np.ones(layout.size, dtype=np.bool_)
    places = [place for tensor, place in layout.slices() if is_prunable(tensor)]
    if scope == "layer":
        for place in places:
            _remove(left, np.arange(place.start, place.stop), np.abs(flat[place]).astype(np.float64), share)
    elif places:
        scores = [_lamp(flat[p]) if scope == "lamp" else np.abs(flat[p]).astype(np.float64) for p in places]
        _remove(left, np.concatenate([np.arange(p.start, p.stop) for p in places]), np.concatenate(scores), share)
    return left


def _remove(left: Kept, coordinates: npt.NDArray[np.int64], scores: Scores, share: float) -> None:
    """Remove the coordinates with the least scores; of equals the first."""
    count = int(share * len(coordinates))
    left[coordinates[np.argsort(scores, kind="stable")[:count]]] = False


def _lamp(values: Float32) -> Scores:
    """Square of each value in parts of the squares of all that are not smaller; 0 for zeros, 1 for the largest."""
    squares = np.square(values.astype(np.float64))
    order = np.argsort(squares, kind="stable")
    ascending = squares[order]
    following = np.cumsum(ascending[::-1])[::-1]
    scores = np.empty_like(squares)
    scores[order] = np.divide(ascending, following, out=np.zeros_like(ascending), where=following > 0)
    return scores
