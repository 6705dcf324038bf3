"""Magnitude pruning: which weights become zero, and when.

Model: small weights are removed while training goes on, a few at first quickly and the last ones slowly (Zhu and Gupta 2017,
https://arxiv.org/abs/1710.01878); iterative pruning with retraining loses much less than pruning at once (Han et al. 2015,
https://arxiv.org/abs/1506.02626). What small means is the scope (`edgefl.compress.magnitude`).

Rules: what is pruned are trained tensors with at least two axes and eight values per output channel, those that coarse files
quantise, unless they are personal: what lives on one device is left whole. A pruned weight stays pruned.
"""

from dataclasses import dataclass

import numpy as np

from edgefl.codec.marks import is_prunable
from edgefl.compress.magnitude import kept
from edgefl.errors import ModelError
from edgefl.plan import Scope

__all__ = ["Pruning", "is_prunable", "kept"]


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
    scope: Scope = "lamp"
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
