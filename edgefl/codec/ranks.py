"""The members of each class by their rank: which coordinate is the r-th of its class, and the other way round.

Model: most coordinates are in one class, because most weights have hardly moved. The members of all others are listed; a member
of the common class is found by how many of the listed ones come before it, so that the long list is never made.

Where many are chosen, it takes less time and memory to look at every member whether it is (`masks_by_class`).

Rule: a list is in ascending order; which class is taken for the common one has no effect but on time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgefl.codec.fixed import Bits
from edgefl.layout import Index

_STRIDE = 61


@dataclass(frozen=True, slots=True)
class Listed:
    """A class whose members are listed: int64, ascending."""

    members: Index

    @property
    def size(self) -> int:
        """How many members it has."""
        return len(self.members)

    def at(self, ranks: Index) -> Index:
        """The members of these ranks, each below `size`."""
        return self.members.take(ranks)

    def ranks(self, members: Index) -> Index:
        """The ranks of members."""
        return np.searchsorted(self.members, members)


@dataclass(frozen=True, slots=True)
class Unlisted:
    """A class that has all numbers below `size + len(others)` but the `others`: int64, ascending."""

    others: Index
    size: int

    def at(self, ranks: Index) -> Index:
        """The members of these ranks, each below `size`."""
        members_before = self.others - np.arange(len(self.others))
        return ranks + np.searchsorted(members_before, ranks, side="right")

    def ranks(self, members: Index) -> Index:
        """The ranks of members."""
        return members - np.searchsorted(self.others, members)


def masks_by_class(of_each: npt.NDArray[np.uint8], classes: int) -> Iterator[Bits]:
    """For each class that has members, from the highest down, which they are."""
    for number in reversed(range(classes)):
        members = of_each == number
        if members.any():
            yield members


def by_class(of_each: npt.NDArray[np.uint8], classes: int) -> Iterator[tuple[int, Listed | Unlisted]]:
    """The classes that have members, from the highest down.

    Args:
        of_each: the class of each number, below `classes`.
        classes: how many there may be.
    """
    common = int(np.bincount(of_each[::_STRIDE], minlength=classes).argmax())
    others = np.flatnonzero(of_each != common)
    of_others = of_each.take(others)
    for number in reversed(range(classes)):
        if number == common:
            found: Listed | Unlisted = Unlisted(others, len(of_each) - len(others))
        else:
            found = Listed(others.take(np.flatnonzero(of_others == number)))
        if found.size:
            yield number, found
