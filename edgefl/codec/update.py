"""An update as one file, in one of three forms that docs/update-format.md describes byte by byte.

Model: the version in the header tells the form: 1 is plain (`edgefl.codec.plain`), 2 is coded in the context of the model's
history (`edgefl.codec.contextual`), 3 is dense, rotated at random (`edgefl.codec.rotated`). `decode(data)` gives exactly the
`sent` of the encoder, to the last bit, so

    sent + residual = vector

holds to float32 rounding and error feedback loses nothing.

Rules: no length in the file is trusted before it is compared with what the receiver expects; a decoder returns finite, bounded
values or raises UpdateError.
"""

from dataclasses import dataclass

import numpy as np

from edgefl.codec import contextual, plain, rotated
from edgefl.codec.history import History
from edgefl.codec.plain import HEADER_LENGTH, MAGIC
from edgefl.codec.sparsify import Sparse, count_sent, top_k
from edgefl.codec.values import MAX_BITS, dequantise, quantise
from edgefl.errors import UpdateError
from edgefl.layout import MAX_PARAMETERS, Float32


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
    """Encode the largest coordinates of a vector in the plain form.

    Args:
        vector: delta plus residual, float32, shape `(n,)`, finite, 1 <= n <= MAX_PARAMETERS; not changed.
        sparsity: fraction of coordinates to send, in (0, 1].
        bits: per sent value, 1 to 8.
        rng: decides the stochastic rounding; unused with one bit.

    Raises:
        UpdateError: the vector is not finite (training diverged), or a parameter is out of range.
    """
    check_vector(vector)
    if not (0.0 < sparsity <= 1.0 and 1 <= bits <= MAX_BITS):
        raise UpdateError("impossible codec setting", expected="sparsity in (0, 1], bits 1 to 8", found=f"{sparsity} and {bits}")
    positions = top_k(vector, count_sent(len(vector), sparsity))
    quantised = quantise(vector[positions], bits, rng)
    values = dequantise(quantised.codes, quantised.low, quantised.high, bits)
    residual = vector.copy()
    residual[positions] -= values
    return Encoded(plain.write_plain(positions, quantised, len(vector)), Sparse(positions, values, len(vector)), residual)


def decode(data: bytes, expected_size: int, history: History | None = None) -> Sparse:
    """Read an update of a vector of `expected_size` coordinates.

    Memory is bounded by a small multiple of `expected_size`, whatever the bytes say.

    Args:
        data: the file.
        expected_size: coordinates that the sender's updates have.
        history: what the sender coded against; needed if `needs_history(data)`, otherwise not looked at.

    Raises:
        UpdateError: truncated, trailing bytes, unknown version, another size, another history, scales that are not finite, or any
            other damage.
    """
    if not len(data) <= max_length(expected_size):
        expected = f"at most {max_length(expected_size)} bytes"
        raise UpdateError("update has an impossible length", expected=expected, found=f"{len(data)} bytes")
    version = data[3] if data[:3] == MAGIC and len(data) > 3 else 0
    if version == plain.VERSION:
        return plain.read_plain(data, expected_size)
    if version == contextual.VERSION:
        return contextual.read_contextual(data, expected_size, history)
    if version == rotated.VERSION:
        return rotated.read_rotated(data, expected_size)
    raise UpdateError("not an update of a known format", expected=f"{MAGIC!r} version 1 to 3", found=f"{data[:4]!r}")


def needs_history(data: bytes) -> bool:
    """Whether these bytes, if they are an update at all, can be read only with the history of the model."""
    return data[:4] == MAGIC + bytes([contextual.VERSION])


def max_length(size: int) -> int:
    """Bytes that no valid update of `size` coordinates exceeds: all of them with 8 bits, and positions."""
    return HEADER_LENGTH + size + size // 4 + 16


def check_vector(vector: Float32) -> None:
    """Refuse what cannot be sent.

    Raises:
        UpdateError: not a float32 vector of 1 to `MAX_PARAMETERS` coordinates, or not finite.
    """
    if vector.dtype != np.float32 or vector.ndim != 1 or not 1 <= len(vector) <= MAX_PARAMETERS:
        raise UpdateError(
            "cannot encode this array", expected="float32 in one axis", found=f"{vector.dtype}, shape {vector.shape}"
        )
    if not np.isfinite(vector).all():
        raise UpdateError(
            "the update holds NaN or infinite values", remedy="Training has diverged: lower the plan's learning rate"
        )
