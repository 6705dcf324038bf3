"""The best of some updates instead of their mean: the one of greatest weight is believed, the others count for nothing.

For a jump-start (`edgefl.jumpstart`): weights of devices that trained long and alone have no common mean worth having.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgefl.aggregate.mean import PartialSum
from edgefl.codec.sparsify import Sparse
from edgefl.layout import Float32, Index


@dataclass(slots=True)
class Best:
    """An aggregator (`edgefl.aggregate.contract.Aggregator`). Of equal weights the device that comes first in the alphabet wins.

    Attributes:
        size: coordinates of the parent.
        updates: how many were added.
    """

    size: int
    updates: int = 0
    _device: str = ""
    _weight: float = 0.0
    _sum: PartialSum = field(init=False)

    def __post_init__(self) -> None:
        self._sum = PartialSum(self.size)

    def add(self, update: Sparse, index: Index | None, weight: float, *, key: str, device: str) -> None:
        """See `Aggregator.add`."""
        candidate = PartialSum(self.size)
        candidate.add(update, index, weight, key=key)  # checks
        if not self.updates or (weight, self._device) > (self._weight, device):
            self._device, self._weight, self._sum = device, weight, candidate
        self.updates += 1

    def result(self, root: Float32 | None = None) -> Float32:  # noqa: ARG002  the same call for all aggregators
        """See `Aggregator.result`."""
        return self._sum.result()

    def covered(self) -> npt.NDArray[np.bool_]:
        """See `Aggregator.covered`."""
        return self._sum.coverage() > 0.0

    def scores(self) -> Mapping[str, float]:
        """None are made."""
        return {}
