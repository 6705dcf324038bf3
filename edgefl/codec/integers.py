"""Sparse vectors of integers as bits: where they are not zero, their signs, and their magnitudes level by level.

Model: magnitudes are written in unary, but all values at a time. *Level* j says which of the values that reach j go beyond it.
That is a subset like any other and costs its entropy (`codec.subsets`), so small magnitudes cost what their frequencies say
without a table of frequencies. After the last level the rest of each magnitude follows with a fixed width.

Rules: a reader checks every count before it allocates, and raises UpdateError for whatever it cannot read; its memory is bounded
by a multiple of the vector's size.
"""

import math

import numpy as np
import numpy.typing as npt

from edgefl.codec.bits import BitReader, count_to_bits
from edgefl.codec.fixed import Bits, codes_to_bits
from edgefl.codec.subsets import read_subset, write_subset
from edgefl.errors import UpdateError
from edgefl.layout import Index

MAX_LEVELS = 16
MAX_WIDTH = 32

Integers = npt.NDArray[np.int64]


def write_places(places: Index, size: int) -> list[Bits]:
    """Strictly increasing numbers below `size`, and how many they are."""
    return [count_to_bits(len(places)), *write_subset(places, size)]


def read_places(reader: BitReader, size: int) -> Index:
    """What `write_places` wrote, int64. Raises UpdateError."""
    return read_subset(reader, reader.count(size), size)


def write_integers(values: Integers) -> list[Bits]:
    """A vector of integers, at most 2**32 in magnitude; its length is not written."""
    places = np.flatnonzero(values)
    pieces = write_places(places, len(values))
    if len(places) == 0:
        return pieces
    rest = np.abs(values[places])
    levels = _levels(rest)
    pieces += [values[places] < 0, count_to_bits(levels)]
    for level in range(1, levels + 1):
        beyond = np.flatnonzero(rest > level)
        pieces += write_places(beyond, len(rest))
        rest = rest[beyond]
    rest = rest - levels - 1
    width = int(rest.max()).bit_length()
    return [*pieces, count_to_bits(width), codes_to_bits(rest, width)]


def read_integers(reader: BitReader, size: int) -> tuple[Index, Integers]:
    """The places of the integers that are not zero, and these, both int64.

    Raises:
        UpdateError: the bits are no such coding.
    """
    places = read_places(reader, size)
    if len(places) == 0:
        return places, np.empty(0, dtype=np.int64)
    negative = reader.take(len(places))
    values = np.ones(len(places), dtype=np.int64)
    remaining = np.arange(len(places))
    for _ in range(reader.count(MAX_LEVELS)):
        remaining = remaining[read_places(reader, len(remaining))]
        if len(remaining) == 0:
            raise UpdateError("an empty level in a difference")
        values[remaining] += 1
    width = reader.count(MAX_WIDTH)
    values[remaining] += reader.codes(len(remaining), width)
    return places, np.where(negative, -values, values)


def _levels(magnitudes: Integers) -> int:
    """How many levels make the shortest code, 0 to `MAX_LEVELS`, so that some values go beyond each."""
    largest = int(magnitudes.max())
    counts = [int(np.count_nonzero(magnitudes > level)) for level in range(min(MAX_LEVELS, largest - 1) + 1)]
    costs, spent = [], 0.0
    for level, count in enumerate(counts):
        if level:
            spent += count.bit_length() + counts[level - 1] * _entropy(count / counts[level - 1])
        costs.append(spent + count * (largest - level - 1).bit_length())
    return costs.index(min(costs))


def _entropy(share: float) -> float:
    return 0.0 if share in (0.0, 1.0) else -share * math.log2(share) - (1.0 - share) * math.log2(1.0 - share)
