"""A weights file without the weights that are gone: where they are, then the dense file's values of all others.

    16   4  length of the next part
    20      which weights of each prunable tensor are there, in layout order: how many, and k of n (`edgefl.codec.subsets`)
    ...     the values of the dense file, in its order, but those that are gone

Model: the dense file (`edgefl.codec.weights`, version 1) and this one say the same. A gone weight is negative zero in fp32 and
fp16, and the code -128, which no weight has, in int8; leaving these out and putting them back are inverse to each other. So what
is known of dense files, their differences above all, holds for these (`edgefl.codec.difference`). Where weights are takes about
H(p) bits each, half a bit at 90 %; the coder of files at rest would take a little less, but a third of a second more, and a
device reads three such files a round.

Rules: the reader knows the lengths of both parts before it allocates: the values follow from the number of weights that are
there. A file that says nothing is gone, or takes as much as the dense one, is refused: there is one file for each vector.
"""

import struct

import numpy as np
import numpy.typing as npt

from edgefl.codec.bits import BitReader, pack
from edgefl.codec.integers import read_places, write_places
from edgefl.codec.marks import Flags, is_prunable
from edgefl.codec.precision import Precision, is_quantised
from edgefl.errors import MessageError, UpdateError
from edgefl.layout import Layout

GONE_CODE = -128
"""What stands for a weight that is gone among int8 codes."""
_LENGTH = struct.Struct("<I")
_MARKS = {"<f4": 0x80000000, "<f2": 0x8000}


def mask_body(body: bytes, layout: Layout, precision: Precision) -> bytes | None:
    """The body of the file without what is gone; None if nothing is, or if it would not be shorter.

    Args:
        body: of the dense file, without its header.
        layout: of the weights.
        precision: fp32, fp16 or int8.
    """
    floats, values = _parts(np.frombuffer(body, dtype=np.uint8), layout, precision)
    present = ~_removed(values, layout, precision)
    if present.all():
        return None
    places = _places(layout, precision)
    mask = pack([bits for one in places for bits in write_places(np.flatnonzero(present[one]), one.stop - one.start)])
    made = b"".join([_LENGTH.pack(len(mask)), mask, floats.tobytes(), values[present].tobytes()])
    return made if len(made) < len(body) else None


def unmask_body(body: memoryview, layout: Layout, precision: Precision) -> bytes:
    """The body of the dense file.

    Raises:
        MessageError: truncated, trailing bytes, or a mask that is none.
    """
    length = _LENGTH.unpack_from(body)[0] if len(body) >= _LENGTH.size else len(body)
    start = _LENGTH.size + length
    if start > len(body):
        raise MessageError("weights file is truncated", expected=f"{start} bytes behind the header", found=f"{len(body)}")
    made = np.empty(_dense_length(layout, precision), dtype=np.uint8)
    floats, values = _parts(made, layout, precision)
    present = _present(body[_LENGTH.size : start], len(values), layout, precision)
    expected = floats.nbytes + int(np.count_nonzero(present)) * values.itemsize
    if len(body) - start != expected or present.all():
        found = f"{len(body) - start} bytes"
        raise MessageError("weights file has a wrong length", expected=f"{expected} bytes of values, not all", found=found)
    floats[:] = np.frombuffer(body[start : start + floats.nbytes], dtype=np.uint8)
    values[present] = np.frombuffer(body[start + floats.nbytes :], dtype=values.dtype)
    values[~present] = _mark(precision)
    if (_removed(values, layout, precision) == present).any():
        raise MessageError("weights file has the mark of what is gone among the weights that are there")
    return made.tobytes()


def _present(mask: memoryview, count: int, layout: Layout, precision: Precision) -> Flags:
    """Which of so many values are there."""
    present = np.ones(count, dtype=np.bool_)
    try:
        reader = BitReader(np.frombuffer(mask, dtype=np.uint8))
        for place in _places(layout, precision):
            there = read_places(reader, place.stop - place.start)
            present[place] = False
            present[place.start + there] = True
        reader.end()
    except UpdateError as error:
        raise MessageError("weights file has a mask that is none", found=error.problem) from None
    return present


def _mark(precision: Precision) -> int:
    return GONE_CODE if precision == Precision.INT8 else _MARKS[_kind(precision)]


def _kind(precision: Precision) -> str:
    return "<f2" if precision == Precision.FP16 else "<f4"


def _dense_length(layout: Layout, precision: Precision) -> int:
    if precision == Precision.INT8:
        return sum(t.size + 4 * t.shape[0] if is_quantised(t) else 4 * t.size for t in layout.tensors)
    return layout.size * np.dtype(_kind(precision)).itemsize


def _parts(
    body: npt.NDArray[np.uint8], layout: Layout, precision: Precision
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.integer]]:
    """What can have no gaps, and the values that can, as integers; both views of a dense body."""
    if precision == Precision.INT8:
        split = 4 * sum(t.shape[0] if is_quantised(t) else t.size for t in layout.tensors)
        return body[:split], body[split:].view(np.int8)
    return body[:0], body.view("<u2" if precision == Precision.FP16 else "<u4")


def _places(layout: Layout, precision: Precision) -> list[slice]:
    """Where each prunable tensor lies among the values."""
    found, start = [], 0
    for tensor in layout.tensors:
        if precision == Precision.INT8 and not is_quantised(tensor):
            continue  # its values are among the floats
        if is_prunable(tensor):
            found.append(slice(start, start + tensor.size))
        start += tensor.size
    return found


def _removed(values: npt.NDArray[np.integer], layout: Layout, precision: Precision) -> Flags:
    removed = np.zeros(len(values), dtype=np.bool_)
    for place in _places(layout, precision):
        removed[place] = values[place] == _mark(precision)
    return removed
