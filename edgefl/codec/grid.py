"""Rows, columns and stages: what the first part of an update says about the rest of it.

Model: rows (a tensor's first axis) and columns (all its other axes together) of all tensors are numbered through. Coordinates
belong to one of three stages, an eighth, three eighths and a half of all, scattered by a hash of their place. Once the earlier
stages are known, the share of a row's coordinates in them that is sent says how busy this row is on this device; so does a
column's. That is what the model's history cannot say: what is peculiar to the device's own data.

Rules: integers only; a share is told in half octaves.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from edgefl.codec.pieces import pieces
from edgefl.layout import Index

Table = npt.NDArray[np.int32]

STAGES = 3
_SECOND, _THIRD = np.uint32(1 << 29), np.uint32(1 << 31)
"""First hashes of the second and of the third stage: after an eighth and after a half of all."""
_KNOWN = (0, 6, 2)
"""Half octaves from the sent share of what is known in a stage, 1/8 or 1/2 of a row, to that of the row."""
_FULL = 40


@dataclass(frozen=True, eq=False)
class Grid:
    """The rows and columns of tensors.

    Attributes:
        shapes: of the tensors, in order; at least one.
    """

    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def stage(self) -> npt.NDArray[np.uint8]:
        """The stage of each coordinate, uint8, shape `(n,)`, below `STAGES`."""
        size = int(self.starts[-1])
        stage = np.empty(size, dtype=np.uint8)
        for piece in pieces(size):
            stage[piece] = _stages(np.arange(piece.start, piece.stop, dtype=np.uint32))
        return stage

    def stage_of(self, places: Index) -> npt.NDArray[np.uint8]:
        """The stages of these coordinates, uint8, without those of all others."""
        return _stages(places.astype(np.uint32))

    @cached_property
    def starts(self) -> Index:
        """Where each tensor starts, and the end of the last."""
        return np.cumsum([0, *(math.prod(shape) for shape in self.shapes)])

    @cached_property
    def heights(self) -> Index:
        """Rows of each tensor."""
        return np.array([shape[0] if shape else 1 for shape in self.shapes])

    @cached_property
    def widths(self) -> Index:
        """Columns of each tensor."""
        return np.diff(self.starts) // self.heights

    def rows_and_columns(self, places: Index) -> tuple[Index, Index]:
        """The row and the column, counted through all tensors, of these coordinates."""
        tensor = np.searchsorted(self.starts, places, side="right") - 1
        row, column = np.divmod(places - self.starts[tensor], self.widths[tensor])
        return row + (np.cumsum(self.heights) - self.heights)[tensor], column + (np.cumsum(self.widths) - self.widths)[tensor]

    def shares(self, sent: Index, stage: int) -> tuple[Table, Table]:
        """How busy each row and each column is, int32 levels from 1 in half octaves, two more for a doubled share.

        Args:
            sent: coordinates that are sent, ascending; at least all of the stages before, which alone count.
            stage: from 1.
        """
        row_lengths, column_lengths = np.repeat(self.widths, self.heights), np.repeat(self.heights, self.widths)
        of_row, of_column = np.zeros_like(row_lengths), np.zeros_like(column_lengths)
        for piece in pieces(len(sent)):
            places = sent[piece]
            rows, columns = self.rows_and_columns(places[self.stage_of(places) < stage])
            _count(rows, of_row)
            _count(columns, of_column)
        return _levels(of_row, row_lengths, stage), _levels(of_column, column_lengths, stage)


def _stages(mixed: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    """The stages of places, which it overwrites."""
    mixed *= np.uint32(0x9E3779B1)
    mixed ^= mixed >> np.uint32(15)
    mixed *= np.uint32(0x85EBCA77)
    return (mixed >= _SECOND).view(np.uint8) + (mixed >= _THIRD).view(np.uint8)


def _count(places: Index, counts: Index) -> None:
    """Add how often each place comes, of ascending runs of them, to the counts."""
    if len(places) == 0:
        return
    first = int(places.min())
    found = np.bincount(places - first)
    counts[first : first + len(found)] += found


def _levels(sent: Index, lengths: Index, stage: int) -> Table:
    """Half octaves of (sent + 1/2) / length, with half a coordinate more so that none is not nothing."""
    level = _FULL + _KNOWN[stage] + half_octaves(2 * sent + 1) - half_octaves(2 * lengths)
    levels: Table = np.maximum(level, 1).astype(np.int32)
    return levels


def half_octaves(numbers: Index | npt.NDArray[np.float64]) -> Index:
    """2 * log2 of positive whole numbers below 2**53, by the first bit of the fraction."""
    found: Index = (numbers.astype(np.float64).view(np.int64) >> 51) - 2 * 1023
    return found
