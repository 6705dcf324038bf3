"""Weights that share values: a table of centroids for each large tensor, one for all biases, and which entry each weight is.

Model: weight sharing as in Deep Compression (Han, Mao and Dally, ICLR 2016, https://arxiv.org/abs/1510.00149), with one set for
the biases of all layers (Thonglek et al., IJCNN 2020, doi 10.1109/IJCNN48605.2020.9207190). Which values are shared is for
`edgefl.codec.sharing` to say; which weight has which is coded as matrices of symbols (`edgefl.codec.symbols`), zero being
symbol 0.

Rules: a set is one quantised tensor, or all other trained tensors together. State and frozen tensors that are not quantised stay
float32. Weights that have at most `MAX_CENTROIDS` distinct values in a set beside 0 lose nothing, so that a retrained model
keeps its centroids to the last bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgefl.codec.fewbits import matrix_shape
from edgefl.codec.precision import is_quantised
from edgefl.codec.sharing import MAX_CENTROIDS, nearest, shared_values
from edgefl.codec.symbols import Shape, packed_size, read_symbols, write_symbols
from edgefl.errors import MessageError
from edgefl.layout import Float32, Layout

_HALF = 0x80
"""Set in the count of a table whose entries are float16."""


@dataclass(frozen=True, slots=True)
class SharedSet:
    """Coordinates whose values come from one table.

    Attributes:
        places: in the flat vector; one for a tensor of its own, several for the biases.
        shape: of the matrix, with the most kinds that there can be.
    """

    places: tuple[slice, ...]
    shape: Shape

    def gather(self, flat: Float32) -> Float32:
        """The set's values, one after the other."""
        return np.concatenate([flat[place] for place in self.places])

    def scatter(self, flat: Float32, values: Float32) -> None:
        """Write the set's values."""
        start = 0
        for place in self.places:
            flat[place] = values[start : start + place.stop - place.start]
            start += place.stop - place.start


def shared_sets(layout: Layout) -> tuple[SharedSet, ...]:
    """The sets of a layout: quantised tensors in its order, then all other trained tensors together, if there are any."""
    large = [SharedSet((place,), matrix_shape(t, MAX_CENTROIDS)) for t, place in layout.slices() if is_quantised(t)]
    small = tuple(place for t, place in layout.slices() if not is_quantised(t) and t.role == "trained")
    count = sum(place.stop - place.start for place in small)
    return (*large, SharedSet(small, Shape(1, count, MAX_CENTROIDS))) if small else tuple(large)


def codebook_length(layout: Layout) -> int:
    """Bytes that the body takes at most: every table full, and nothing gained by coding."""
    tables = sum(1 + 4 * min(MAX_CENTROIDS, one.shape.size) + packed_size(one.shape) for one in shared_sets(layout))
    return 4 * sum(map(_extent, _kept(layout))) + tables


def write_codebook(flat: Float32, layout: Layout) -> tuple[int, bytes]:
    """Form of the symbols, and the body: kept float32, tables, symbols."""
    kept = [flat[place].astype("<f4").tobytes() for place in _kept(layout)]
    tables, matrices = [], []
    for one in shared_sets(layout):
        values = one.gather(flat)
        table = shared_values(values)
        zero = int(np.searchsorted(table, 0))
        places = nearest(table, values)
        # The entries below 0 keep their place plus one, those above 0 theirs; 0 itself comes first.
        symbols = np.where(places < zero, places + 1, np.where(places == zero, 0, places)).astype(np.uint8)
        tables.append(_table_bytes(np.delete(table, zero)))
        matrices.append((Shape(one.shape.rows, one.shape.columns, len(table) - 1), symbols.reshape(one.shape.rows, -1)))
    form, symbols_bytes = write_symbols(matrices)
    return form, b"".join([*kept, *tables, symbols_bytes])


def read_codebook(form: int, body: memoryview, layout: Layout) -> Float32:
    """The flat vector in a body. Raises MessageError."""
    flat = np.empty(layout.size, dtype=np.float32)
    start = 0
    for place in _kept(layout):
        end = start + 4 * _extent(place)
        flat[place] = np.frombuffer(_part(body, start, end), dtype="<f4")
        start = end
    sets = shared_sets(layout)
    tables: list[Float32] = []
    for _ in sets:
        table, start = _read_table(body, start)
        tables.append(table)
    shapes = [Shape(one.shape.rows, one.shape.columns, len(table)) for one, table in zip(sets, tables, strict=True)]
    for one, table, symbols in zip(sets, tables, read_symbols(form, body[start:], shapes), strict=True):
        one.scatter(flat, np.append(np.float32(0), table)[symbols.reshape(-1)])
    return flat


def _kept(layout: Layout) -> Sequence[slice]:
    """Where the float32 values lie."""
    return [place for t, place in layout.slices() if not is_quantised(t) and t.role != "trained"]


def _extent(place: slice) -> int:
    return int(place.stop - place.start)


def _table_bytes(centroids: Float32) -> bytes:
    """Their number, and they themselves, as float16 if that loses nothing."""
    with np.errstate(over="ignore"):
        half = centroids.astype("<f2")
    if np.array_equal(half.astype(np.float32), centroids):
        return bytes([len(centroids) | _HALF]) + half.tobytes()
    return bytes([len(centroids)]) + centroids.astype("<f4").tobytes()


def _read_table(body: memoryview, start: int) -> tuple[Float32, int]:
    """The centroids at a place, and the place behind them."""
    first = _part(body, start, start + 1)[0]
    count, kind = first & ~_HALF, np.dtype("<f2" if first & _HALF else "<f4")
    end = start + 1 + count * kind.itemsize
    centroids = np.frombuffer(_part(body, start + 1, end), dtype=kind).astype(np.float32)
    ascending = bool((centroids[1:] > centroids[:-1]).all())
    if count > MAX_CENTROIDS or not ascending or not np.isfinite(centroids).all() or (centroids == 0).any():
        expected = f"at most {MAX_CENTROIDS} finite values, ascending, none of them 0"
        raise MessageError("a table of shared weights cannot be used", expected=expected, found=f"{count} values")
    return centroids, end


def _part(body: memoryview, start: int, end: int) -> memoryview:
    if end > len(body):
        raise MessageError("weights file is truncated", expected=f"{end} bytes behind the header", found=f"{len(body)}")
    return body[start:end]
