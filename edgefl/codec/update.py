"""An update as one file: format version 1, described byte by byte in docs/update-format.md.

Model: `encode` takes delta + residual, sends its largest coordinates with a few bits each, and returns the bytes together with
what they say and what they left out. `decode(data)` gives exactly the `sent` of the encoder, to the last bit, so

    sent + residual = vector

holds to float32 rounding and error feedback loses nothing.

Rules: no length in the file is trusted before it is compared with what the receiver expects; there is exactly one valid file
for each content (padding is zero, nothing follows); a decoder returns finite, bounded values or raises UpdateError.
"""

import math
import struct
from dataclasses import dataclass

import numpy as np

from edgefl.codec.bits import pack, packed_length, unpack
from edgefl.codec.positions import decode_positions, encode_positions
from edgefl.codec.sparsify import Sparse, count_sent, top_k
from edgefl.codec.values import MAX_BITS, dequantise, quantise
from edgefl.errors import UpdateError
from edgefl.layout import MAX_PARAMETERS, Float32

MAGIC = b"EFU"
VERSION = 1
_HEADER = struct.Struct("<3sBBIIffI")
HEADER_LENGTH = _HEADER.size
"""25 bytes: magic, version, bits, size, count, low, high, Golomb divisor."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """An encoded update.

    Attributes:
        data: the file.
        sent: what `decode` will read from it.
        residual: float32, shape `(size,)`: what was left out, to be added to the next delta.
    """

    data: bytes
    sent: Sparse
    residual: Float32


def encode(vector: Float32, *, sparsity: float, bits: int, rng: np.random.Generator) -> Encoded:
    """Encode the largest coordinates of a vector.

    Args:
        vector: delta plus residual, float32, shape `(n,)`, finite, 1 <= n <= MAX_PARAMETERS; not changed.
        sparsity: fraction of coordinates to send, in (0, 1].
        bits: per sent value, 1 to 8.
        rng: decides the stochastic rounding; unused with one bit.

    Raises:
        UpdateError: the vector is not finite (training diverged), or a parameter is out of range.
    """
    _check_arguments(vector, sparsity, bits)
    positions = top_k(vector, count_sent(len(vector), sparsity))
    quantised = quantise(vector[positions], bits, rng)
    divisor, coded = encode_positions(positions, len(vector))
    header = _HEADER.pack(MAGIC, VERSION, bits, len(vector), len(positions), quantised.low, quantised.high, divisor)
    values = dequantise(quantised.codes, quantised.low, quantised.high, bits)
    residual = vector.copy()
    residual[positions] -= values
    data = header + pack(quantised.codes, bits) + coded
    return Encoded(data, Sparse(positions, values, len(vector)), residual)


def decode(data: bytes, expected_size: int) -> Sparse:
    """Read an update of a vector of `expected_size` coordinates.

    Memory is bounded by a small multiple of `expected_size`, whatever the bytes say.

    Raises:
        UpdateError: truncated, trailing bytes, unknown version, another size, scales that are not finite, or any other damage.
    """
    if not HEADER_LENGTH < len(data) <= max_length(expected_size):
        expected = f"{HEADER_LENGTH + 1} to {max_length(expected_size)} bytes"
        raise UpdateError("update has an impossible length", expected=expected, found=f"{len(data)} bytes")
    magic, version, bits, size, count, low, high, divisor = _HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise UpdateError("not an update of a known format", expected=f"{MAGIC!r} version {VERSION}", found=f"{data[:4]!r}")
    if size != expected_size:
        raise UpdateError("update of another model", expected=f"{expected_size} coordinates", found=str(size))
    if not (1 <= bits <= MAX_BITS and 1 <= count <= size):
        raise UpdateError("update header out of range", found=f"{bits} bits, {count} of {size} coordinates")
    if not (math.isfinite(low) and math.isfinite(high) and 0.0 <= low <= high and (bits > 1 or low == high)):
        raise UpdateError("update has an impossible scale", expected="0 <= low <= high, finite", found=f"{low} and {high}")
    values_end = HEADER_LENGTH + packed_length(count, bits)
    if len(data) < values_end:
        raise UpdateError("update ends inside its values", expected=f"{values_end} bytes or more", found=f"{len(data)}")
    buffer = np.frombuffer(data, dtype=np.uint8)
    positions = decode_positions(buffer[values_end:], divisor, count, size)
    codes = unpack(buffer[HEADER_LENGTH:values_end], count, bits)
    return Sparse(positions, dequantise(codes, low, high, bits), size)


def max_length(size: int) -> int:
    """Bytes that no valid update of `size` coordinates exceeds: all of them with 8 bits, and positions."""
    return HEADER_LENGTH + size + size // 4 + 16


def _check_arguments(vector: Float32, sparsity: float, bits: int) -> None:
    if vector.dtype != np.float32 or vector.ndim != 1 or not 1 <= len(vector) <= MAX_PARAMETERS:
        raise UpdateError(
            "cannot encode this array", expected="float32 in one axis", found=f"{vector.dtype}, shape {vector.shape}"
        )
    if not np.isfinite(vector).all():
        raise UpdateError(
            "the update holds NaN or infinite values", remedy="Training has diverged: lower the plan's learning rate"
        )
    if not (0.0 < sparsity <= 1.0 and 1 <= bits <= MAX_BITS):
        raise UpdateError("impossible codec setting", expected="sparsity in (0, 1], bits 1 to 8", found=f"{sparsity} and {bits}")
