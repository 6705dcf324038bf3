"""Groups of channels that can only go together, and what a model is without some of them. Pure.

Model: taking channels out of a group shortens certain axes of certain tensors, each by a fixed number of rows per channel (one in
the layer itself, the pixels of its output where a dense layer reads flattened channels). Several groups may shorten one axis
(concatenation); their effects add up.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import msgspec

from edgefl.errors import ModelError
from edgefl.layout import Layout

Kept = Mapping[str, tuple[int, ...]]
"""Channels that stay, ascending, by group; groups that are missing stay whole."""
Shares = Mapping[str, float]
"""Part of its channels that each group keeps, in (0, 1]; groups that are missing stay whole."""


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that go together.

    Attributes:
        name: of the layer whose outputs they are.
        channels: how many.
        parts: equal parts of the channels that must keep the same places.
        rows: tensor, axis and rows per channel of everything that gets shorter without them.
    """

    name: str
    channels: int
    parts: int
    rows: tuple[tuple[str, int, int], ...] = ()

    @property
    def size(self) -> int:
        """Places in each part."""
        return self.channels // self.parts

    def count(self, share: float) -> int:
        """Channels that stay: the share, rounded to whole places, at least one in each part."""
        return self.parts * max(1, round(self.size * share))

    def chosen(self, order: tuple[int, ...], share: float) -> tuple[int, ...]:
        """The channels that stay, ascending; `order` lists the places in a part, the most important first."""
        places = order[: self.count(share) // self.parts]
        return tuple(sorted(part * self.size + place for part in range(self.parts) for place in places))

    def seen(self, parent: Layout, child: Layout, dropped: int) -> "Group":
        """With the rows that were found by dropping some channels.

        Raises:
            ModelError: an axis did not become shorter by the same number of rows for each of them, or has not changed.
        """
        rows = []
        for whole, part in zip(parent.tensors, child.tensors, strict=True):
            for axis, (before, after) in enumerate(zip(whole.shape, part.shape, strict=True)):
                if before != after:
                    rows.append((whole.name, axis, (before - after) // dropped))
                    if (before - after) % dropped:
                        raise ModelError(f"channels of {self.name!r} are of different sizes")
        if not rows:
            raise ModelError(f"without channels of {self.name!r} nothing is smaller")
        return replace(self, rows=tuple(rows))


def shrunk(parent: Layout, groups: Iterable[Group], shares: Shares) -> Layout:
    """The layout of the parent without the other channels."""
    shapes = {tensor.name: list(tensor.shape) for tensor in parent.tensors}
    for group in groups:
        gone = group.channels - group.count(shares.get(group.name, 1.0))
        for name, axis, rows in group.rows:
            shapes[name][axis] -= gone * rows
    return Layout(tuple(msgspec.structs.replace(t, shape=tuple(shapes[t.name])) for t in parent.tensors))
