"""The weighted mean of updates from different structures, as a sum that never holds more than one update.

Model. Each device trains a variant, a view of the parent model (`edgefl.layout`). For each parent coordinate the mean is taken
over the devices whose variant *has* this coordinate (HeteroFL, Diao et al., ICLR 2021, https://arxiv.org/abs/2010.01264):

    mean[c] = sum over devices that cover c of weight * value[c]  /  sum over devices that cover c of weight

A sparse update says nothing about a coordinate that it covers and does not send: that is a zero, not an abstention, because the
device's residual will bring it later. So the denominator depends on the variants alone, and is kept as one weight per variant.

Rules: memory is O(parameters), whatever the number of updates; sums are float64, so that the order of arrival does not show in
the float32 result; two partial sums over disjoint sets of updates can be merged.
"""

import math

import numpy as np
import numpy.typing as npt

from edgefl.codec.sparsify import Sparse
from edgefl.errors import UpdateError
from edgefl.layout import Float32, Index


def polynomial_staleness(late: int, exponent: float = 0.5) -> float:
    """Factor in (0, 1] for an update that is `late` >= 0 rounds late: `(1 + late) ** -exponent`.

    FedAsync (Xie et al. 2019, https://arxiv.org/abs/1903.03934) calls it polynomial; FedBuff (Nguyen et al., AISTATS 2022,
    https://arxiv.org/abs/2106.06639) uses it with exponent 1/2.
    """
    return float((1.0 + late) ** -exponent)


class PartialSum:
    """A running weighted sum in parent coordinates. An accumulator: it changes in place and has one owner.

    Attributes:
        size: coordinates of the parent.
        updates: how many were added.
        total: float64, shape `(size,)`: sum of weight times value.
        maps: index map by variant.
        weights: sum of weights by variant.
    """

    def __init__(self, size: int) -> None:
        """An empty sum over a parent of `size` coordinates."""
        self.size = size
        self.updates = 0
        self.total: npt.NDArray[np.float64] = np.zeros(size, dtype=np.float64)
        self.maps: dict[str, Index | None] = {}
        self.weights: dict[str, float] = {}

    def add(self, update: Sparse, index: Index | None, weight: float, *, key: str) -> None:
        """Add one device's update.

        Args:
            update: in the variant's coordinates.
            index: the parent coordinate of each of the variant's coordinates, distinct; None if the variant is the parent.
            weight: positive; usually samples times staleness factor.
            key: names the variant; all updates of one variant come with an equal index map.

        Raises:
            UpdateError: the update does not fit the variant, the variant does not fit the parent, or the weight is not positive
                and finite. The sum is unchanged.
        """
        if not (math.isfinite(weight) and weight > 0.0):
            raise UpdateError("impossible weight of an update", expected="positive and finite", found=f"{weight}")
        covered = self.size if index is None else len(index)
        if update.size != covered:
            raise UpdateError(f"update does not fit variant {key!r}", expected=f"{covered} coordinates", found=f"{update.size}")
        self._register(key, index)
        places = update.positions if index is None else index[update.positions]
        # Places are distinct, so that `total[places] += ...` would do; it passes over them twice.
        np.add.at(self.total, places, np.multiply(update.values, weight, dtype=np.float64))
        self.weights[key] += weight
        self.updates += 1

    def merge(self, other: "PartialSum") -> None:
        """Add everything that another partial sum of the same parent holds; the other is unchanged.

        Raises:
            UpdateError: another parent, or one variant's name with two structures.
        """
        if other.size != self.size:
            raise UpdateError("partial sums of different models", expected=f"{self.size} coordinates", found=f"{other.size}")
        for variant, index in other.maps.items():
            self._register(variant, index)
        for variant, weight in other.weights.items():
            self.weights[variant] += weight
        self.total += other.total
        self.updates += other.updates

    def coverage(self) -> npt.NDArray[np.float64]:
        """Total weight of the devices that cover each coordinate, shape `(size,)`."""
        weight = np.zeros(self.size, dtype=np.float64)
        for variant, index in self.maps.items():
            weight[slice(None) if index is None else index] += self.weights[variant]
        return weight

    def result(self) -> Float32:
        """The mean, float32, shape `(size,)`; 0 where no device covers the coordinate."""
        mean = np.zeros(self.size, dtype=np.float32)
        if all(index is None for index in self.maps.values()):
            weight = sum(self.weights.values())
            return np.divide(self.total, weight, out=mean, casting="same_kind") if weight > 0.0 else mean
        coverage = self.coverage()
        return np.divide(self.total, coverage, out=mean, where=coverage > 0.0, casting="same_kind")

    def _register(self, variant: str, index: Index | None) -> None:
        """Remember a variant's index map, or check that it is the one remembered."""
        if variant not in self.maps:
            if index is not None and len(index) and not (int(index.min()) >= 0 and int(index.max()) < self.size):
                raise UpdateError(f"variant {variant!r} is no part of the parent", expected=f"coordinates below {self.size}")
            self.maps[variant] = index
            self.weights[variant] = 0.0
            return
        known = self.maps[variant]
        if known is not index and not (known is not None and index is not None and np.array_equal(known, index)):
            raise UpdateError(f"two different structures are called {variant!r}")
