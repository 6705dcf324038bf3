"""Matrices of small numbers among which zero is special: the weights of coarse files, packed or coded.

Model: a matrix has a row for each output channel and a column for each input of it. First it is coded which symbols are zero, row
by row, then which of the others each is. How likely a weight is there (not zero) is estimated from what was there in its row so
far and in the rows above in its column and the two beside it: after magnitude pruning whole inputs are gone, the rim of an image
for example. The estimate, in quarter octaves, is only the context of an adaptive coder (`edgefl.codec.lanes`), which learns what
it is worth. Symbols that are not zero are coded bit by bit from the top, each in the context of the bits above.

Packed, the other form, has no model: three kinds of symbols take five to a byte, others a whole number of bits. It is what
bounds the length.

Rules: a reader knows number, shape and kinds of symbols of each matrix; everything else raises MessageError. Memory is bounded by
a small multiple of the symbols.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from edgefl.codec.fixed import Codes, codes_of, codes_to_bits, packed_length
from edgefl.codec.lanes import MAX_LANES_LOG, Coder, LaneReader, LaneWriter, Odds
from edgefl.errors import MessageError

Symbols = npt.NDArray[np.uint8]
"""Shape `(rows, columns)`; 0 is the weight 0."""

PACKED = 0
"""The form without a model; any other is 1 + the binary logarithm of the number of lanes."""
STEPS_LOG = 12
"""The number of lanes is such that there are about `2**STEPS_LOG` steps: a step costs time, a lane two bytes."""

_ONE = 16
_TRITS = np.array([81, 27, 9, 3, 1], dtype=np.uint8)
_LEVELS = np.array(sorted({(4 + j) << e >> 2 for e in range(4, _ONE + 1) for j in range(4)}), dtype=np.int64)
_SURE_COLUMN, _SURE_ROW = 16, 100
"""How many rows, and how many columns, must speak before they weigh as much as the whole matrix does."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a reader knows of a matrix.

    Attributes:
        rows, columns: at least 1.
        kinds: how many symbols there are beside zero, 0 to 254.
    """

    rows: int
    columns: int
    kinds: int

    @property
    def size(self) -> int:
        """How many symbols it has."""
        return self.rows * self.columns


def packed_size(shape: Shape) -> int:
    """Bytes of a matrix in packed form."""
    return -(-shape.size // 5) if shape.kinds == 2 else packed_length(shape.size, shape.kinds.bit_length())


def write_symbols(matrices: Sequence[tuple[Shape, Symbols]]) -> tuple[int, bytes]:
    """The shorter form of these matrices: its number, and its bytes."""
    packed = b"".join(_packed(symbols.reshape(-1), shape.kinds) for shape, symbols in matrices)
    bits = sum(shape.size + _width(shape) * int(np.count_nonzero(symbols)) for shape, symbols in matrices)
    lanes_log = min(MAX_LANES_LOG, max(0, bits.bit_length() - STEPS_LOG))
    coder = LaneWriter(lanes_log)
    _walk(coder, matrices)
    coded = coder.finish()
    return (1 + lanes_log, coded) if len(coded) < len(packed) else (PACKED, packed)


def read_symbols(form: int, data: memoryview, shapes: Sequence[Shape]) -> list[Symbols]:
    """The matrices in these bytes, all of them.

    Raises:
        MessageError: an unknown form, bytes too few or too many, or a symbol that there is not.
    """
    if form == PACKED:
        return _unpacked(data, shapes)
    if form > 1 + MAX_LANES_LOG:
        raise MessageError("coded weights of an unknown form", expected=f"at most {1 + MAX_LANES_LOG}", found=str(form))
    coder = LaneReader(data, form - 1)
    matrices = [(shape, np.zeros((shape.rows, shape.columns), dtype=np.uint8)) for shape in shapes]
    _walk(coder, matrices)
    coder.finish()
    return [symbols for _, symbols in matrices]


def _walk(coder: Coder, matrices: Sequence[tuple[Shape, Symbols]]) -> None:
    """Both ends: a writer reads the symbols, a reader puts them there."""
    there = Odds(len(_LEVELS) + 1)
    for shape, symbols in matrices:
        if shape.kinds:
            _walk_places(coder, symbols, there)
            _walk_values(coder, symbols.reshape(-1), shape)


def _walk_places(coder: Coder, symbols: Symbols, there: Odds) -> None:
    """Which symbols are not zero; a reader writes a one for these."""
    rows, columns = symbols.shape
    above = np.zeros(columns + 2, dtype=np.int64)  # in each column so far, with a margin
    beside = np.zeros(rows, dtype=np.int64)
    high, wide = max(1, coder.lanes // columns), min(columns, coder.lanes)
    found = 0
    for top in range(0, rows, high):
        for left in range(0, columns, wide):
            block = symbols[top : top + high, left : left + wide]
            share = ((found + 1) << _ONE) // (top * columns + left + 2)
            near = above[left : left + wide + 2]
            column = near[:-2] + 6 * near[1:-1] + near[2:]
            column = ((column[: block.shape[1]] << _ONE) + 8 * _SURE_COLUMN * share) // (8 * (top + _SURE_COLUMN))
            row = ((beside[top : top + high] << _ONE) + _SURE_ROW * share) // (left + _SURE_ROW)
            likely = np.minimum((row[:, None] * column) // share, (1 << _ONE) - 1)
            contexts = np.searchsorted(_LEVELS, likely.reshape(-1), side="right")
            bits = coder.code(contexts, there, block.reshape(-1) != 0).reshape(block.shape)
            np.copyto(block, 1, where=bits & (block == 0))
            above[left + 1 : left + 1 + block.shape[1]] += bits.sum(axis=0)
            beside[top : top + high] += bits.sum(axis=1)
            found += int(np.count_nonzero(bits))


def _walk_values(coder: Coder, symbols: Symbols, shape: Shape) -> None:
    """Which symbol each one is that is not zero."""
    width = _width(shape)
    tree = Odds(1 << width)
    places = np.flatnonzero(symbols)
    for start in range(0, len(places), coder.lanes):
        here = places[start : start + coder.lanes]
        values = symbols[here].astype(np.int64) - 1
        nodes = np.ones(len(here), dtype=np.int64)
        for level in reversed(range(width)):
            nodes = 2 * nodes + coder.code(nodes, tree, (values >> level & 1).astype(np.bool_))
        values = nodes - (1 << width)
        if int(values.max()) >= shape.kinds:
            raise MessageError(
                "coded weights have a symbol too many", expected=f"{shape.kinds} kinds", found=f"{values.max() + 1}"
            )
        symbols[here] = values + 1


def _width(shape: Shape) -> int:
    """Bits that tell symbols apart which are not zero."""
    return max(0, shape.kinds - 1).bit_length()


def _packed(symbols: Symbols, kinds: int) -> bytes:
    if kinds == 2:
        rows = np.pad(symbols, (0, -len(symbols) % 5)).reshape(-1, 5)
        return bytes((rows * _TRITS).sum(axis=1, dtype=np.uint8))
    return np.packbits(codes_to_bits(symbols, kinds.bit_length())).tobytes()


def _unpacked(data: memoryview, shapes: Sequence[Shape]) -> list[Symbols]:
    ends = np.cumsum([0, *map(packed_size, shapes)]).tolist()
    if len(data) != ends[-1]:
        raise MessageError("packed weights have a wrong length", expected=f"{ends[-1]} bytes", found=f"{len(data)}")
    return [_unpack(data[a:b], shape) for (a, b), shape in zip(pairwise(ends), shapes, strict=True)]


def _unpack(data: memoryview, shape: Shape) -> Symbols:
    raw = np.frombuffer(data, dtype=np.uint8)
    values: Codes
    if shape.kinds == 2:
        values = (raw[:, None] // _TRITS % 3).reshape(-1)
        damaged = bool((raw > 242).any()) or bool(values[shape.size :].any())
    else:
        width = shape.kinds.bit_length()
        padding = -(shape.size * width) % 8
        values = codes_of(raw, shape.size, width)
        damaged = bool(padding and raw[-1] & ((1 << padding) - 1)) or bool((values > shape.kinds).any())
    if damaged:
        raise MessageError("packed weights hold a symbol or padding that cannot be", expected=f"at most {shape.kinds}")
    return values[: shape.size].astype(np.uint8).reshape(shape.rows, shape.columns)
