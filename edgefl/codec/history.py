"""What both ends know about a model's past, from which the next update can be guessed.

Model: three weight vectors of one version, in the coordinates that updates carry. Where the weights have moved much since the
version began, and where they moved in the last round, the next update will probably be large, too. The device holds all three
anyway; the server keeps the weights of its rounds.

Four *levels* per coordinate say so, in half octaves, small integers that every machine computes alike:

* how far its weight moved from `before` to `now`, and from `start` to `now`;
* the same as its row and its column in the tensor say (row sum times column sum over tensor sum): a gradient of a layer is a sum
  of outer products of what goes in and what comes back, so that active inputs and erring outputs stand for their crossing (the
  rank-one estimate of Adafactor, Shazeer and Stern 2018, https://arxiv.org/abs/1804.04235).

Rules: both ends must hold the same bits; an update coded against a history can only be read with that history. Levels come from
single float32 subtractions, from exponents and from exact sums of whole numbers, so that neither the order of a sum nor a
library's logarithm can make a difference.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from edgefl.codec.grid import Grid, half_octaves
from edgefl.codec.pieces import PIECE, pieces
from edgefl.errors import UpdateError
from edgefl.layout import MAX_PARAMETERS, Float32, Index

Levels = npt.NDArray[np.uint8]

RANGE = 32
"""Half octaves below the largest move that are told apart: down to 2**-16 of it."""
LEVELS = 64
"""All levels are below this; 0 means no move worth telling."""
_FRACTION = 24
_LEAST_HALVES = 96
_MOST = 2.0**100


@dataclass(frozen=True, eq=False)
class History:
    """Weights at three times, each float32, shape `(n,)`, finite. Treat the arrays as read-only.

    Attributes:
        start: the version's weights, of round 0.
        before: of an earlier round that the device still held.
        now: that the device trained from.
        shapes: of the tensors that the vectors are made of, in order. Without them rows and columns are not looked at.

    Raises:
        UpdateError: lengths differ, or an array is not a finite float32 vector.
    """

    start: Float32
    before: Float32
    now: Float32
    shapes: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        for vector in (self.start, self.before, self.now):
            if vector.dtype != np.float32 or vector.ndim != 1 or not 1 <= len(vector) <= MAX_PARAMETERS:
                raise UpdateError("a history is of float32 vectors", found=f"{vector.dtype}, shape {vector.shape}")
            if not np.isfinite(vector).all():
                raise UpdateError("a history holds NaN or infinite values")
        if not len(self.start) == len(self.before) == len(self.now):
            found = f"{len(self.start)}, {len(self.before)} and {len(self.now)}"
            raise UpdateError("a history's vectors differ in length", expected="equal lengths", found=found)
        if self.shapes and sum(self.sizes) != self.size:
            raise UpdateError("a history's shapes do not fit its vectors", expected=str(self.size), found=str(sum(self.sizes)))

    @property
    def size(self) -> int:
        """Coordinates of each vector."""
        return len(self.now)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Coordinates of each tensor."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def grid(self) -> Grid:
        """Rows and columns of the tensors."""
        return Grid(self.shapes)

    @cached_property
    def levels(self) -> tuple[Levels, ...]:
        """The levels of each coordinate, uint8, shape `(n,)`, below `LEVELS`: two, or four if the shapes are known.

        Kept with the history, because a server reads many updates with one.
        """
        own, outer = [], []
        for then in (self.before, self.start):
            move = self.now - then
            own.append(own_levels(move))
            if self.shapes:
                outer.append(outer_levels(move, self.shapes))
        return *own, *outer

    def only(self, places: Index | None) -> "History":
        """The history of some coordinates, of updates that carry no others; their levels are those that they have among all.

        Args:
            places: int64, ascending; None for all.
        """
        if places is None:
            return self
        part = History(self.start[places], self.before[places], self.now[places])
        part.__dict__["levels"] = tuple(kind[places] for kind in self.levels)
        return part


def own_levels(move: Float32) -> Levels:
    """Magnitudes in half octaves, the largest at `RANGE`, 0 for less than 2**-16 of that; float32 to uint8, O(n).

    A half octave is the exponent and the first bit of the fraction of a float32. Moves below 2**-94 count as none, so that
    machines that flush tiny numbers to zero agree.
    """
    halves = np.empty(len(move), dtype=np.uint16)
    for piece in pieces(len(move)):
        halves[piece] = (move[piece].view(np.uint32) << np.uint32(1)) >> np.uint32(23)
    base = np.uint16(max(int(halves.max()), _LEAST_HALVES) - RANGE)
    np.maximum(halves, base, out=halves)
    halves -= base
    return halves.astype(np.uint8)


def outer_levels(move: Float32, shapes: tuple[tuple[int, ...], ...]) -> Levels:
    """What row and column say of each coordinate's magnitude, in half octaves of 2**-24 of the largest; uint8.

    Rows run over a tensor's first axis, columns over all others together.
    """
    levels = np.empty(len(move), dtype=np.uint8)
    fixed = _fixed_point(move)
    for shape, part in zip(shapes, places(tuple(math.prod(shape) for shape in shapes)), strict=True):
        table = fixed[part].reshape(shape[0] if shape else 1, -1)
        rows, columns = table.sum(axis=1, dtype=np.float64), table.sum(axis=0, dtype=np.float64)
        of_row = _octaves_of_sums(rows) - _octaves_of_sums(rows.sum().reshape(1))
        of_column, found = _octaves_of_sums(columns), levels[part].reshape(table.shape)
        step = max(1, PIECE // len(of_column))
        for first in range(0, len(of_row), step):
            expected = of_row[first : first + step, None] + of_column
            found[first : first + step] = np.clip(expected, 0, LEVELS - 1, out=expected)
    return levels


def _fixed_point(move: Float32) -> Float32:
    """Magnitudes as whole numbers, the largest in `[2**23, 2**24)`: sums of 2**28 of them are exact in float64, in any order."""
    magnitude = np.abs(move)
    largest = float(magnitude.max())
    if largest > _MOST:
        largest = _MOST
        np.minimum(magnitude, np.float32(_MOST), out=magnitude)
    exponent = max(math.frexp(largest)[1], _LEAST_HALVES // 2 - 126)
    magnitude *= np.float32(2.0 ** (_FRACTION - exponent))
    return np.trunc(magnitude, out=magnitude)


def _octaves_of_sums(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.int16]:
    """Half octaves of whole numbers; -16 for 0."""
    return np.where(sums > 0, half_octaves(np.maximum(sums, 1)), -16).astype(np.int16)


def places(sizes: tuple[int, ...]) -> Iterator[slice]:
    """Where tensors of these sizes lie."""
    start = 0
    for size in sizes:
        yield slice(start, start + size)
        start += size
