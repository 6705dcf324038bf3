"""How the sent values are written: one sign and a few bits of magnitude each.

One bit: the sign; all values get the mean magnitude (the ternarisation of Sattler et al., https://arxiv.org/abs/1903.02891).
b = 2 to 8 bits: the sign and one of 2**(b-1) evenly spaced magnitudes from the smallest to the largest that is sent, chosen by
stochastic rounding so that its expectation is the value (Alistarh et al., QSGD, NIPS 2017, https://arxiv.org/abs/1610.02132).

Both ends compute the levels with the same float64 operations, so that the device knows to the last bit what the server reads.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgefl.codec.pieces import pieces
from edgefl.errors import UpdateError
from edgefl.layout import Float32

MAX_BITS = 8


@dataclass(frozen=True, slots=True)
class Quantised:
    """Codes of the values and the two numbers that turn them back.

    Attributes:
        codes: uint8, shape `(k,)`, below `2**bits`: the sign (1 is negative) above the magnitude's level.
        low: smallest magnitude, a float32 value.
        high: largest magnitude, a float32 value; equal to `low` if bits is 1.
        bits: 1 to 8.
    """

    codes: npt.NDArray[np.uint8]
    low: float
    high: float
    bits: int


def quantise(values: Float32, bits: int, rng: np.random.Generator) -> Quantised:
    """Quantise finite values, shape `(k,)` with k at least 1. `rng` decides the stochastic rounding; one bit uses none."""
    if bits == 1:
        mean = float(np.float32(np.abs(values).mean(dtype=np.float64)))
        return Quantised(np.signbit(values).view(np.uint8), mean, mean, bits)
    magnitude = np.abs(values)
    low, high = float(magnitude.min()), float(magnitude.max())
    top = (1 << (bits - 1)) - 1
    codes = np.signbit(values).view(np.uint8)
    codes <<= np.uint8(bits - 1)
    for piece in pieces(len(values) if high > low else 0):
        exact = (magnitude[piece].astype(np.float64) - low) * (top / (high - low))
        lower = np.floor(exact)
        lower += rng.random(len(exact)) < exact - lower
        codes[piece] |= np.minimum(lower, top).astype(np.uint8)
    return Quantised(codes, low, high, bits)


def levels(low: float, high: float, bits: int) -> Float32:
    """The magnitudes that `bits - 1` bits choose from, float32, shape `(2**(bits-1),)`, ascending from `low` to `high`."""
    top = (1 << (bits - 1)) - 1
    if top == 0:
        return np.array([low], dtype=np.float32)
    step = (high - low) / top
    return np.minimum(low + step * np.arange(top + 1, dtype=np.float64), high).astype(np.float32)


def dequantise(codes: npt.NDArray[np.integer], low: float, high: float, bits: int) -> Float32:
    """The values, shape `(k,)`: finite and at most `high` in magnitude if `low <= high` are finite."""
    magnitudes = levels(low, high, bits)
    if bits == 1:
        signed = codes.astype(np.uint32)
        signed <<= np.uint32(31)
        signed |= magnitudes.view(np.uint32)
        return signed.view(np.float32)
    both = np.concatenate([magnitudes, -magnitudes])
    values = np.empty(len(codes), dtype=np.float32)
    for piece in pieces(len(codes)):
        values[piece] = both.take(codes[piece])
    return values


def check_scale(bits: int, low: float, high: float) -> None:
    """Refuse what no quantiser makes.

    Raises:
        UpdateError: bits or scales out of range.
    """
    if not 1 <= bits <= MAX_BITS:
        raise UpdateError("update header out of range", expected=f"1 to {MAX_BITS} bits", found=str(bits))
    if not (math.isfinite(low) and math.isfinite(high) and 0.0 <= low <= high and (bits > 1 or low == high)):
        raise UpdateError("update has an impossible scale", expected="0 <= low <= high, finite", found=f"{low} and {high}")
