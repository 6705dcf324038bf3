"""What every aggregator is: updates go in one at a time, one vector comes out, and what it thinks of each device.

Rules: an aggregator changes in place and has one owner; the order in which updates come does not show in its result; a device's
score is in [0, 1], where 1 is as good as the median device and 0 is of no use or hostile.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgefl.codec.sparsify import Sparse
from edgefl.errors import UpdateError
from edgefl.layout import Float32, Index


@dataclass(frozen=True, slots=True)
class Held:
    """An update that waits for the others, in the coordinates of the parent.

    Attributes:
        device: who sent it.
        key: names its variant.
        weight: positive.
        update: what it says; positions ascending, in the parent's coordinates.
        index: the parent coordinates that its variant covers; None for all.
    """

    device: str
    key: str
    weight: float
    update: Sparse
    index: Index | None = None

    @property
    def covered(self) -> int:
        """How many coordinates its variant has."""
        return self.update.size if self.index is None else len(self.index)


class Aggregator(Protocol):
    """One round's updates."""

    @property
    def updates(self) -> int:
        """How many were added."""
        ...

    def add(self, update: Sparse, index: Index | None, weight: float, *, key: str, device: str) -> None:
        """Add a device's update.

        Args:
            update: in the variant's coordinates.
            index: the parent coordinate of each of the variant's; None if the variant is the parent.
            weight: positive and finite.
            key: names the variant.
            device: names the sender.

        Raises:
            UpdateError: the update does not fit the variant or the variant the parent; nothing has changed.
        """
        ...

    def result(self, root: Float32 | None = None) -> Float32:
        """The aggregate, float32, shape `(size,)`; 0 where no device covers the coordinate.

        Args:
            root: what the server itself has learned from its own examples, shape `(size,)`; for the root set alone.

        Raises:
            UpdateError: a root is needed and there is none.
        """
        ...

    def covered(self) -> npt.NDArray[np.bool_]:
        """Which coordinates some device of the round covers, shape `(size,)`."""
        ...

    def scores(self) -> Mapping[str, float]:
        """A score for each device, once the result has been asked for; empty from an aggregator that does not look."""
        ...


def in_parent(update: Sparse, index: Index | None, size: int) -> Sparse:
    """An update in the coordinates of the parent.

    Raises:
        UpdateError: it does not fit.
    """
    covered = size if index is None else len(index)
    if update.size != covered:
        raise UpdateError("update does not fit its variant", expected=f"{covered} coordinates", found=f"{update.size}")
    if index is None:
        return update
    places = index[update.positions]
    order = places.argsort(kind="stable")
    return Sparse(places[order], update.values[order], size)
