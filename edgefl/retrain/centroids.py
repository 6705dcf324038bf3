"""Training shared values: the gradients of all weights that share a centroid are added, and the centroid moves.

Model: Deep Compression's trained quantisation (Han, Mao and Dally, ICLR 2016, section 3, https://arxiv.org/abs/1510.00149). Each
set of weights (`edgefl.codec.codebook.shared_sets`) gets its table and every weight its entry once, from the trained weights;
then only the tables are trained. Zero is pinned: it is no entry that moves, so that what has been pruned stays pruned. The file
of such a model grows by nothing while it is trained, and encoding it loses nothing.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from edgefl.codec.codebook import SharedSet, shared_sets
from edgefl.codec.sharing import MAX_CENTROIDS, TOLERANCE, nearest, shared_values, storable
from edgefl.errors import ModelError
from edgefl.layout import Float32, Layout
from edgefl.retrain.flat import FlatModule


@dataclass(frozen=True, slots=True)
class Sharing:
    """How many values there are.

    Attributes:
        tolerance: squared error in parts of the weights' squares that sharing may cost before it is trained, from 0; the
            fewest centroids that keep to it are taken, set by set.
        most: centroids beside zero in one set, 1 to 63.

    Raises:
        ModelError: a number is out of range.
    """

    tolerance: float = TOLERANCE
    most: int = MAX_CENTROIDS

    def __post_init__(self) -> None:
        if not self.tolerance >= 0.0 or not 1 <= self.most <= MAX_CENTROIDS:
            expected = f"tolerance from 0, most from 1 to {MAX_CENTROIDS}"
            raise ModelError("a sharing of weights that cannot be", expected=expected, found=f"{self}")


class Shared:
    """Tables of a module's weights, trained in place of them.

    Args:
        flat: the module; its weights become shared values at once.
        sharing: how many.
    """

    def __init__(self, flat: FlatModule, sharing: Sharing) -> None:
        self._flat = flat
        values = flat.values.numpy()
        coordinates, entries, tables = [], [], []
        start = 0
        for one in trained_sets(flat.layout):
            own = one.gather(values)
            table = shared_values(own, sharing.tolerance, sharing.most)
            places = nearest(table, own)
            used = table[places] != 0
            coordinates.append(_coordinates(one)[used])
            entries.append(places[used] + start)
            values[_coordinates(one)[~used]] = 0.0
            tables.append(table)
            start += len(table)
        self._tables = tables
        self._coordinates = torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *coordinates]))
        self._entries = torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *entries]))
        self.moved = torch.from_numpy(np.concatenate([np.empty(0, dtype=np.float32), *tables]))
        self.push(0.0)

    def pull(self) -> None:
        """An entry's gradient is the sum of its weights'; zero has none, because no weight that trains has it."""
        own = self._flat.gradients[self._coordinates]
        self.moved.grad = torch.bincount(self._entries, own, minlength=len(self.moved)).to(torch.float32)

    def push(self, progress: float) -> None:  # noqa: ARG002  part of the protocol
        """Each weight takes its entry's value."""
        self._flat.values[self._coordinates] = self.moved[self._entries]

    def settle(self) -> None:
        """Round the entries to what a file stores in two bytes, table by table."""
        start = 0
        for table in self._tables:
            place = slice(start, start + len(table))
            self.moved[place] = torch.from_numpy(_settled(self.moved[place].numpy()))
            start += len(table)
        self.push(1.0)


def trained_sets(layout: Layout) -> tuple[SharedSet, ...]:
    """The sets of a layout whose tensors are all trained; what is frozen is not touched."""
    frozen = [place for tensor, place in layout.slices() if tensor.role != "trained"]
    return tuple(one for one in shared_sets(layout) if not any(place in frozen for place in one.places))


def _settled(entries: Float32) -> Float32:
    """The entries as `storable` rounds the distinct ones among them."""
    distinct, places = np.unique(entries, return_inverse=True)
    return storable(distinct)[places]


def _coordinates(one: SharedSet) -> npt.NDArray[np.int64]:
    return np.concatenate([np.arange(place.start, place.stop, dtype=np.int64) for place in one.places])
