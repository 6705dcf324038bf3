"""A variant's weights as a file, at rest and on the downlink: from fp32 down to less than a bit a weight.

     0   3  magic "EFW"
     3   1  version: 1 for fp32, fp16 and int8, 2 for the others, 3 for fp32, fp16 and int8 without the weights that are gone
     4   1  precision: 0 fp32, 1 fp16, 2 int8, 3 int4, 4 ternary, 5 codebook
     5   1  version 2: form of the symbols (`edgefl.codec.symbols`); otherwise zero
     6   2  zero
     8   8  digest of the layout that the weights belong to
    16      fp32, fp16: the flat vector, little-endian
            int8: all float32 parts in layout order (the scales of a quantised tensor, the values of any other), little-endian;
            then the int8 parts in layout order
            int4, ternary: `edgefl.codec.fewbits`; codebook: `edgefl.codec.codebook`
            version 3: `edgefl.codec.masked`

Weights that have been pruned during training are marked (`edgefl.codec.marks`). fp32, fp16 and int8 keep the marks, and leave the
marked weights out of the file where that makes it shorter; the others write them as any zero.

int8 is symmetric with one scale per output channel (axis 0), value = scale * q with q in -127 to 127 (Krishnamoorthi 2018,
https://arxiv.org/abs/1806.08342, section 3). The encoder takes powers of two as scales: they seldom change while weights move, so
that files of neighbouring rounds differ in few codes (`edgefl.codec.difference`); half a bit of precision is the price.

Biases, norms and tensors with fewer than `MIN_CHANNEL` values per channel stay float32 (a codebook shares the trained ones among
them): they are few, they hurt most, and a scale of four bytes would not pay for itself.

Training goes on in float32 from the decoded values; only the file is small. Which precisions are worth training from, and which
are for weights at rest, is said at `Precision`.
"""

import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from edgefl.codec.codebook import codebook_length, read_codebook, write_codebook
from edgefl.codec.fewbits import fewbits_length, read_fewbits, write_fewbits
from edgefl.codec.marks import gone
from edgefl.codec.masked import GONE_CODE, mask_body, unmask_body
from edgefl.codec.precision import MIN_CHANNEL, PRECISIONS, TRAINABLE, Precision, is_quantised
from edgefl.errors import MessageError, ModelError
from edgefl.layout import Float32, Layout

__all__ = [
    "HEADER_LENGTH",
    "MIN_CHANNEL",
    "PRECISIONS",
    "TRAINABLE",
    "Precision",
    "decode_weights",
    "dense_form",
    "encode_weights",
    "is_quantised",
    "shortest_form",
    "weights_length",
]

MAGIC = b"EFW"
VERSION = 1
VERSION_CODED = 2
VERSION_MASKED = 3
_TRAINED, _AT_REST = (VERSION, VERSION_MASKED), (VERSION_CODED,)
_HEADER = struct.Struct("<3sBBB2x8s")
HEADER_LENGTH = _HEADER.size


def weights_length(layout: Layout, precision: Precision) -> int:
    """Length in bytes of the file that `encode_weights` makes: exact for `TRAINABLE` precisions, an upper bound for the others.

    With weights that are gone it is an upper bound for all.

    Of int4 and ternary files the bound is what they take before entropy coding. For a codebook it is a full table for every set
    and six bits a weight; how much less it is depends on the weights, so a planner that wants to know has to encode them.
    """
    if precision in (Precision.INT4, Precision.TERNARY):
        return HEADER_LENGTH + fewbits_length(layout, precision)
    if precision == Precision.CODEBOOK:
        return HEADER_LENGTH + codebook_length(layout)
    if precision == Precision.INT8:
        return HEADER_LENGTH + sum(t.size + 4 * t.shape[0] if is_quantised(t) else 4 * t.size for t in layout.tensors)
    return HEADER_LENGTH + layout.size * (4 if precision == Precision.FP32 else 2)


def encode_weights(flat: Float32, layout: Layout, precision: Precision) -> bytes:
    """The file of these weights.

    Args:
        flat: float32, shape `(layout.size,)`, finite.
        layout: of `flat`.
        precision: one of `PRECISIONS`.

    Raises:
        ModelError: another length, values that are not finite, or too large for fp16.
    """
    if flat.shape != (layout.size,) or not np.isfinite(flat).all():
        raise ModelError(
            "these weights cannot be written", expected=f"{layout.size} finite values", found=f"shape {flat.shape}, or NaN inside"
        )
    if precision not in TRAINABLE:
        coarse = write_codebook(flat, layout) if precision == Precision.CODEBOOK else write_fewbits(flat, layout, precision)
        return _header(VERSION_CODED, precision, coarse[0], layout) + coarse[1]
    dense = _header(VERSION, precision, 0, layout) + _dense_body(flat, layout, precision)
    return shortest_form(dense, layout)


def _dense_body(flat: Float32, layout: Layout, precision: Precision) -> bytes:
    if precision == Precision.FP32:
        return flat.astype("<f4").tobytes()
    if precision == Precision.FP16:
        largest = float(np.abs(flat).max())
        if largest > float(np.finfo(np.float16).max):
            raise ModelError("a weight is too large for fp16", expected="at most 65504", found=f"{largest:g}", remedy="Use int8")
        halves = flat.astype("<f2")
        halves[(halves == 0) & ~gone(flat, layout)] = 0  # what underflows is there, whatever its sign
        return halves.tobytes()
    floats, codes = _quantise(flat, layout)
    return floats.astype("<f4").tobytes() + codes.tobytes()


def shortest_form(dense: bytes, layout: Layout) -> bytes:
    """A dense file of this layout without the weights that are gone in it, if any are and that makes it shorter."""
    precision = PRECISIONS[dense[4]]
    made = mask_body(dense[HEADER_LENGTH:], layout, precision)
    return dense if made is None else _header(VERSION_MASKED, precision, 0, layout) + made


def dense_form(file: bytes, layout: Layout) -> bytes:
    """The dense file of the weights in a file of a `TRAINABLE` precision; `shortest_form` leads back.

    Raises:
        MessageError: it is no weights file of this layout; one of another precision comes back as it is.
    """
    precision, _ = _checked_header(file, layout)
    if file[3] != VERSION_MASKED:
        return file
    body = unmask_body(memoryview(file)[HEADER_LENGTH:], layout, precision)
    return _header(VERSION, precision, 0, layout) + body


def decode_weights(data: bytes, layout: Layout) -> Float32:
    """The flat float32 vector in a weights file of this layout, of any precision.

    Raises:
        MessageError: another format, another layout, another length, or values that are not finite.
    """
    precision, form = _checked_header(data, layout)
    body = memoryview(dense_form(data, layout))[HEADER_LENGTH:]
    if precision == Precision.CODEBOOK:
        flat = read_codebook(form, body, layout)
    elif precision not in TRAINABLE:
        flat = read_fewbits(form, body, layout, precision)
    elif precision == Precision.INT8:
        flat = _dequantise(body, layout)
    else:
        flat = np.frombuffer(body, dtype="<f4" if precision == Precision.FP32 else "<f2").astype(np.float32)
    if not np.isfinite(flat).all():
        raise MessageError("weights file holds NaN or infinite values")
    return flat


def _header(version: int, precision: Precision, form: int, layout: Layout) -> bytes:
    return _HEADER.pack(MAGIC, version, PRECISIONS.index(precision), form, bytes.fromhex(layout.digest()))


def _checked_header(data: bytes, layout: Layout) -> tuple[Precision, int]:
    """Precision and form of a file whose format, layout and length can be right."""
    if len(data) < HEADER_LENGTH:
        raise MessageError("weights file is truncated", expected=f"at least {HEADER_LENGTH} bytes", found=f"{len(data)}")
    magic, version, code, form, digest = _HEADER.unpack_from(data)
    dense = version == VERSION
    known = magic == MAGIC and code < len(PRECISIONS) and version in (_TRAINED if code < len(TRAINABLE) else _AT_REST)
    if not known or data[6:8] != bytes(2) or (version != VERSION_CODED and form):
        expected = f"{MAGIC!r} version {VERSION} to {VERSION_MASKED}"
        raise MessageError("not a weights file of a known format", expected=expected, found=f"{data[:8]!r}")
    if digest.hex() != layout.digest():
        raise MessageError("weights of another model or variant", expected=f"layout {layout.digest()}", found=digest.hex())
    precision = PRECISIONS[code]
    longest = weights_length(layout, precision)
    if len(data) > longest or (dense and len(data) != longest):
        expected = f"{longest} bytes of {precision}" if dense else f"at most {longest} bytes of {precision}"
        raise MessageError("weights file has a wrong length", expected=expected, found=f"{len(data)} bytes")
    return precision, form


def _float_counts(layout: Layout) -> Iterator[int]:
    """How many float32 each tensor has in an int8 file."""
    return (t.shape[0] if is_quantised(t) else t.size for t in layout.tensors)


def _quantise(flat: Float32, layout: Layout) -> tuple[Float32, npt.NDArray[np.int8]]:
    floats: list[Float32] = []
    codes: list[npt.NDArray[np.int8]] = [np.empty(0, dtype=np.int8)]
    removed = gone(flat, layout)
    for tensor, place in layout.slices():
        if not is_quantised(tensor):
            floats.append(flat[place])
            continue
        rows = flat[place].reshape(tensor.shape[0], -1)
        # The smallest normal float32 as the least scale keeps the division and the decoded values free of subnormals.
        least = np.maximum(np.abs(rows).max(axis=1) / np.float32(127), np.finfo(np.float32).tiny)
        fraction, exponent = np.frexp(least)
        scales = np.ldexp(np.float32(1), exponent - (fraction == 0.5))  # the next power of two
        floats.append(scales)
        codes.append(np.clip(np.rint(rows / scales[:, None]), -127, 127).astype(np.int8).reshape(-1))
        codes[-1][removed[place]] = GONE_CODE
    return np.concatenate(floats), np.concatenate(codes)


def _dequantise(body: memoryview, layout: Layout) -> Float32:
    split = 4 * sum(_float_counts(layout))
    floats = np.frombuffer(body[:split], dtype="<f4").astype(np.float32)
    codes = np.frombuffer(body[split:], dtype=np.int8)
    flat = np.empty(layout.size, dtype=np.float32)
    float_at = code_at = 0
    for (tensor, place), count in zip(layout.slices(), _float_counts(layout), strict=True):
        part = floats[float_at : float_at + count]
        float_at += count
        if is_quantised(tensor):
            rows = codes[code_at : code_at + tensor.size].reshape(tensor.shape[0], -1)
            code_at += tensor.size
            with np.errstate(over="ignore", invalid="ignore"):  # a damaged scale; the caller refuses what is not finite
                values = rows * part[:, None]
            flat[place] = np.where(rows == GONE_CODE, np.float32(-0.0), values).reshape(-1)
        else:
            flat[place] = part
    return flat
