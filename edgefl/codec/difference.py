"""A file that says where a weights file has changed: differences of the downlink (docs/update-format.md).

A *difference* turns one weights file into another of the same layout and precision, to the last bit. It knows nothing of rounds:
a device that missed three rounds gets one difference over all of them, in which the moves of a coordinate have been added up.

Model: the floats that change, as steps and corrections (`edgefl.codec.moves`); then the int8 codes that are not what their
scale's change alone would make of them.

Rules:

* Files without the weights that are gone (`edgefl.codec.masked`) are taken in their dense form, and what is made of them is
  written in its shortest: a weight that goes is a change like any other.
* A difference is shorter than the file that it makes; its reader refuses any other, and checks each length before it allocates.
* int4, ternary and codebooks have no differences: what a weight becomes depends on its neighbours, and between versions that were
  retrained apart nothing stays the same.
"""

import struct

import numpy as np
import numpy.typing as npt

from edgefl.codec.bits import BitReader, pack
from edgefl.codec.integers import read_integers, read_places, write_integers, write_places
from edgefl.codec.masked import GONE_CODE
from edgefl.codec.moves import GRID, Floats, best_exponent, bits_of, floats_at, move, ordinals_of, steps_between
from edgefl.codec.weights import (
    HEADER_LENGTH,
    PRECISIONS,
    TRAINABLE,
    Precision,
    dense_form,
    is_quantised,
    shortest_form,
    weights_length,
)
from edgefl.errors import MessageError, UpdateError
from edgefl.layout import Index, Layout

MAGIC = b"EFD"
VERSION = 1
_HEADER = struct.Struct("<3sBB")

Codes = npt.NDArray[np.int8]


def encode_difference(base: bytes, target: bytes, layout: Layout) -> bytes | None:
    """What turns one weights file into another; None if that would not be shorter, or for weights at rest, which have none.

    Args:
        base: a weights file.
        target: another of the same precision.
        layout: of both.

    Raises:
        UpdateError: they are no such files.
    """
    if _at_rest(base, layout) and _at_rest(target, layout):
        return None
    shortest, base, target = len(target), _dense(base, layout), _dense(target, layout)
    before, codes_before = _sections(base, layout)
    after, codes_after = _sections(target, layout)
    if base[:HEADER_LENGTH] != target[:HEADER_LENGTH]:
        raise UpdateError("no difference between weights files of two precisions", found=f"{base[4]} and {target[4]}")
    expected = _rescaled(codes_before, before, after, layout)
    changed = np.flatnonzero(bits_of(before) != bits_of(after))
    before, after = before[changed], after[changed]
    exponent = best_exponent(before, after)
    steps = steps_between(before, after, exponent)
    corrections = ordinals_of(after) - ordinals_of(move(before, steps, exponent))
    pieces = (
        write_places(changed, _float_count(base, layout)),
        write_integers(steps.astype(np.int64)),
        write_integers(corrections),
        write_integers(codes_after.astype(np.int64) - expected),
    )
    data = _HEADER.pack(MAGIC, VERSION, exponent) + pack([bits for piece in pieces for bits in piece])
    return data if len(data) < shortest else None


def apply_difference(base: bytes, difference: bytes, layout: Layout) -> bytes:
    """The weights file that a difference makes of its base.

    Whether it is the right one is for its hash to say: a difference may well make something of another base. Memory is bounded
    by a small multiple of the base's length.

    Args:
        base: a weights file.
        difference: as it came.
        layout: of the weights.

    Raises:
        UpdateError: no weights file of this layout, no difference, or not for such a base.
    """
    made = bytearray(_dense(base, layout))
    floats, codes = _sections(made, layout)
    if not _HEADER.size < len(difference) < len(made):
        raise UpdateError("a difference of an impossible length", expected=f"below {len(made)} bytes", found=f"{len(difference)}")
    magic, version, exponent = _HEADER.unpack_from(difference)
    if magic != MAGIC or version != VERSION or exponent > GRID:
        found = f"{difference[: _HEADER.size]!r}"
        raise UpdateError("not a difference of a known format", expected=f"{MAGIC!r} version {VERSION}", found=found)
    reader = BitReader(np.frombuffer(difference, dtype=np.uint8)[_HEADER.size :])
    before = floats.copy() if len(codes) else floats
    _move_floats(floats, read_places(reader, len(floats)), reader, exponent)
    expected = _rescaled(codes, before, floats, layout)
    places, values = read_integers(reader, len(codes))
    reader.end()
    moved = expected[places] + values
    if len(moved) and not -128 <= int(moved.min()) <= int(moved.max()) <= 127:
        raise UpdateError("a difference leaves the range of int8", found=f"{int(moved.min())} to {int(moved.max())}")
    codes[:] = expected
    codes[places] = moved
    return shortest_form(bytes(made), layout)


def _move_floats(floats: Floats, changed: Index, reader: BitReader, exponent: int) -> None:
    """Read steps and corrections of the changed floats, and put their new values into the array."""
    steps = np.zeros(len(changed), dtype=np.float64)
    places, values = read_integers(reader, len(changed))
    steps[places] = values
    moved = move(floats[changed], steps, exponent)
    places, values = read_integers(reader, len(changed))
    ordinals = ordinals_of(moved[places]) + values
    limit = 1 << (8 * moved.itemsize - 1)
    if len(ordinals) and not -limit <= int(ordinals.min()) <= int(ordinals.max()) < limit:
        raise UpdateError("a difference leaves the range of its floats")
    moved[places] = floats_at(ordinals, moved.dtype)
    floats[changed] = moved


def _dense(file: bytes, layout: Layout) -> bytes:
    """A weights file in its dense form. Raises UpdateError when it is none of this layout."""
    try:
        return dense_form(file, layout)
    except MessageError as error:
        raise UpdateError("no weights file of this model and variant", found=str(error)) from None


def _at_rest(file: bytes, layout: Layout) -> bool:
    """Whether a file looks like one of this layout of a precision that rounds are not sent in."""
    coded = len(file) > HEADER_LENGTH and file[:4] == b"EFW\x02" and len(TRAINABLE) <= file[4] < len(PRECISIONS)
    return coded and file[8:16].hex() == layout.digest()


def _float_count(file: bytes | bytearray, layout: Layout) -> int:
    """How many floats a weights file of this layout has."""
    if file[4] != PRECISIONS.index(Precision.INT8):
        return layout.size
    return sum(tensor.shape[0] if is_quantised(tensor) else tensor.size for tensor in layout.tensors)


def _sections(file: bytes | bytearray, layout: Layout) -> tuple[Floats, Codes]:
    """The floats and the int8 codes of a weights file, as views.

    Raises:
        UpdateError: it is none of this layout.
    """
    known = len(file) > HEADER_LENGTH and file[:4] == b"EFW\x01" and file[4] < len(TRAINABLE)
    if not known or file[8:16].hex() != layout.digest() or len(file) != weights_length(layout, PRECISIONS[file[4]]):
        found = f"{len(file)} bytes, {bytes(file[:HEADER_LENGTH]).hex()}"
        raise UpdateError("no weights file of this model and variant", expected=f"layout {layout.digest()}", found=found)
    kind = np.dtype("<f2" if PRECISIONS[file[4]] == Precision.FP16 else "<f4")
    split = HEADER_LENGTH + _float_count(file, layout) * kind.itemsize
    body = np.frombuffer(file, dtype=np.uint8)
    return body[HEADER_LENGTH:split].view(kind), body[split:].view(np.int8)


def _rescaled(codes: Codes, before: Floats, after: Floats, layout: Layout) -> npt.NDArray[np.int16]:
    """What the codes would be if only the scales had changed.

    Args:
        codes: of an int8 file; of any other there are none.
        before: floats of the file, scales among them.
        after: the same with the new scales.
        layout: of the file.
    """
    expected = codes.astype(np.int16)
    float_at = code_at = 0
    for tensor in layout.tensors if len(codes) else ():
        rows = tensor.shape[0] if is_quantised(tensor) else tensor.size
        if is_quantised(tensor):
            old, new = (floats[float_at : float_at + rows] for floats in (before, after))
            changed = np.flatnonzero(bits_of(old) != bits_of(new))
            block = expected[code_at : code_at + tensor.size].reshape(rows, -1)
            with np.errstate(all="ignore"):  # scales of a damaged difference
                ratio = old[changed].astype(np.float64) / new[changed]
                scaled = np.clip(np.nan_to_num(np.rint(block[changed] * ratio[:, None])), -127, 127).astype(np.int16)
            block[changed] = np.where(block[changed] == GONE_CODE, GONE_CODE, scaled)
            code_at += tensor.size
        float_at += rows
    return expected
