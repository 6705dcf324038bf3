"""The downlink: weights that change in few places from round to round, and a file that says where (docs/update-format.md).

Model. The server keeps, beside the true parent, what devices *hold*. `advance` brings the held weights closer to the parent: the
largest fraction of what is missing moves by whole multiples of a power of two, the rest stays behind and is wanted again in the
next round. That is error feedback on the server (Sattler et al., Sparse Ternary Compression, 2019, section V,
https://arxiv.org/abs/1903.02891); the residual is `parent - held` and needs no place of its own.

A *difference* turns one weights file into another of the same layout and precision, to the last bit. It knows nothing of rounds:
a device that missed three rounds gets one difference over all of them, in which the moves of a coordinate have been added up.

Rules:

* A float that changes is put on the grid of multiples of 2**-20 and moved by a whole number of steps of 2**-e, e from 0 to 20.
  Below 16 in magnitude such sums are exact in float32, so that one move over several rounds ends where the single ones do. What
  does not end there (fp16, int8's scales, large weights) is corrected by a number of units in the last place.
* Only IEEE operations that round exactly are used (a multiplication by a power of two, an addition, a rounding): every machine
  gets the same bits.
* Files without the weights that are gone (`edgefl.codec.masked`) are taken in their dense form, and what is made of them is
  written in its shortest: a weight that goes is a change like any other.
* A difference is shorter than the file that it makes; its reader refuses any other, and checks each length before it allocates.
* int4, ternary and codebooks have no differences: what a weight becomes depends on its neighbours, and between versions that were
  retrained apart nothing stays the same.
"""

import math
import struct

import numpy as np
import numpy.typing as npt

from edgefl.codec.bits import BitReader, pack
from edgefl.codec.integers import Integers, read_integers, read_places, write_integers, write_places
from edgefl.codec.marks import Flags, marked
from edgefl.codec.masked import GONE_CODE
from edgefl.codec.sparsify import count_sent, top_k
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
from edgefl.errors import MessageError, ModelError, UpdateError
from edgefl.layout import Float32, Index, Layout

MAGIC = b"EFD"
VERSION = 1
GRID = 20
"""Floats that change become multiples of 2**-20: four times finer than float16 at 1, exact in float32 below 16."""
_HEADER = struct.Struct("<3sBB")
_SAMPLE = 4096

Doubles = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int8]
Floats = npt.NDArray[np.floating]


def advance(held: Float32, parent: Float32, sparsity: float, removed: Flags | None = None, *, last: bool = False) -> Float32:
    """What devices hold next: the held weights, moved towards the parent in the coordinates where most is missing.

    The step is the power of two next to the mean of the chosen magnitudes, so that most moves are one or two steps.

    Args:
        held: float32, shape `(n,)`, what devices hold now; not changed.
        parent: float32, shape `(n,)`, where they should be.
        sparsity: fraction of the coordinates that may change, in (0, 1].
        removed: bool, shape `(n,)`, those that are gone from the parent (`edgefl.codec.marks`): they go at once, beside the
            others, and are marked in what is returned, which has no other marks; None if none is gone.
        last: nothing follows: every coordinate moves that is half a step or more away.

    Raises:
        ModelError: shapes differ, or a value is not finite.
    """
    if held.shape != parent.shape or not (np.isfinite(parent).all() and np.isfinite(held).all()):
        raise ModelError("these weights cannot be sent", expected=f"{held.shape} finite values", found=f"shape {parent.shape}")
    held = held + np.float32(0.0)  # a copy without marks: what is gone is for the parent to say
    held = held if removed is None else marked(held, removed)
    missing = parent - held
    chosen = top_k(missing, count_sent(len(held), sparsity))
    mean = float(np.abs(missing[chosen]).mean(dtype=np.float64))
    if mean == 0.0:
        return held.copy()
    exponent = min(GRID, max(0, 1 - math.frexp(mean * math.sqrt(2.0))[1]))
    if last:
        chosen = np.flatnonzero(np.abs(missing) >= 0.5 * 2.0**-exponent)
    steps = np.rint((parent[chosen] - _on_grid(held[chosen])) * 2.0**exponent)
    moving = steps != 0
    after = held.copy()
    after[chosen[moving]] = _moved(held[chosen[moving]], steps[moving], exponent)
    return after


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
    changed = np.flatnonzero(_bits(before) != _bits(after))
    before, after = before[changed], after[changed]
    exponent = _best_exponent(before, after)
    steps = _steps(before, after, exponent)
    corrections = _ordinals(after) - _ordinals(_moved(before, steps, exponent))
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
    moved = _moved(floats[changed], steps, exponent)
    places, values = read_integers(reader, len(changed))
    ordinals = _ordinals(moved[places]) + values
    limit = 1 << (8 * moved.itemsize - 1)
    if len(ordinals) and not -limit <= int(ordinals.min()) <= int(ordinals.max()) < limit:
        raise UpdateError("a difference leaves the range of its floats")
    moved[places] = _of_ordinals(ordinals, moved.dtype)
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
            changed = np.flatnonzero(_bits(old) != _bits(new))
            block = expected[code_at : code_at + tensor.size].reshape(rows, -1)
            with np.errstate(all="ignore"):  # scales of a damaged difference
                ratio = old[changed].astype(np.float64) / new[changed]
                scaled = np.clip(np.nan_to_num(np.rint(block[changed] * ratio[:, None])), -127, 127).astype(np.int16)
            block[changed] = np.where(block[changed] == GONE_CODE, GONE_CODE, scaled)
            code_at += tensor.size
        float_at += rows
    return expected


def _on_grid(values: Floats) -> Doubles:
    return np.rint(values.astype(np.float64) * 2.0**GRID) * 2.0**-GRID


def _moved(values: Floats, steps: Doubles, exponent: int) -> Floats:
    """Values on the grid, moved by so many steps of 2**-exponent, rounded to their type."""
    with np.errstate(over="ignore", invalid="ignore"):  # of a base or difference that is not what it should be
        return (_on_grid(values) + steps * 2.0**-exponent).astype(values.dtype)


def _steps(before: Floats, after: Floats, exponent: int) -> Doubles:
    """How many steps lead from a value to the next, to the nearest; zero where that is no number of a sensible size."""
    steps = np.rint((_on_grid(after) - _on_grid(before)) * 2.0**exponent)
    return np.where(np.abs(steps) < 1 << 31, steps, 0.0) + 0.0  # no negative zeros, which a reader does not see


def _best_exponent(before: Floats, after: Floats) -> int:
    """The exponent that makes steps and corrections of a sample cheapest; of equals the largest step."""
    stride = -(-len(before) // _SAMPLE) or 1
    before, after = before[::stride], after[::stride]
    wanted = _ordinals(after)

    def cost(exponent: int) -> float:
        steps = _steps(before, after, exponent)
        corrections = wanted - _ordinals(_moved(before, steps, exponent))
        return float(np.log2(1.0 + 2.0 * np.abs(steps)).sum() + np.log2(1.0 + 2.0 * np.abs(corrections)).sum())

    return min(range(GRID + 1), key=cost)


def _bits(values: Floats) -> npt.NDArray[np.signedinteger]:
    return values.view(f"<i{values.itemsize}")


def _ordinals(values: Floats) -> Integers:
    """The place of each float among all floats of its type in ascending order: neighbours differ by one."""
    bits = _bits(values).astype(np.int64)
    return np.where(bits < 0, bits ^ ((1 << (8 * values.itemsize - 1)) - 1), bits)


def _of_ordinals(ordinals: Integers, kind: np.dtype[np.floating]) -> Floats:
    bits = np.where(ordinals < 0, ordinals ^ ((1 << (8 * kind.itemsize - 1)) - 1), ordinals)
    return bits.astype(f"<i{kind.itemsize}").view(kind)
