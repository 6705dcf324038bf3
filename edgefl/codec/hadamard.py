"""The randomised Hadamard transform: signs at random, then sums and differences in pairs, and every coordinate is nearly normal.

Model: a vector of n coordinates is cut into blocks, each a power of two long: as many of `BLOCK` as fit, then the powers of two
that n's remainder is made of. A block's coordinates get random signs and are multiplied with the Hadamard matrix H (entries 1 and
-1, H @ H = d * identity).

Rules: signs are a fixed function of seed and place (SplitMix64, Steele, Lea and Flood 2014), not of a library's generator; on
integers the transform is exact, so that its result is the same on every machine.
"""

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T", np.int32, np.float64)

BLOCK = 1 << 16
"""Largest block: 2**16 sums of centroids below 2**15 stay inside 32 bits."""
_GOLDEN = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def block_lengths(size: int) -> list[int]:
    """Lengths of the blocks, descending powers of two whose sum is `size`."""
    rest = size % BLOCK
    return [BLOCK] * (size // BLOCK) + [1 << bit for bit in reversed(range(16)) if rest >> bit & 1]


def blocks(size: int) -> Iterator[slice]:
    """Where the blocks lie."""
    start = 0
    for length in block_lengths(size):
        yield slice(start, start + length)
        start += length


def random_signs(seed: int, size: int, start: int = 0) -> npt.NDArray[np.int32]:
    """`size` values 1 or -1 from the `start`-th on, int32: -1 where the bits of SplitMix64's words are set, the highest first."""
    first, skipped = divmod(start, 64)
    words = np.arange(first + 1, (start + size + 63) // 64 + 1, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(seed)
    for shift, factor in _MIX:
        words = (words ^ (words >> np.uint64(shift))) * np.uint64(factor)
    words ^= words >> np.uint64(31)
    bits = np.unpackbits(words.astype(">u8").view(np.uint8))[skipped : skipped + size]
    return 1 - 2 * bits.astype(np.int32)


def transform(vector: npt.NDArray[T]) -> npt.NDArray[T]:
    """H times each block of the vector; shape `(n,)`, a new array. int32 is exact while the sums fit. O(n log n)."""
    result = vector.copy()
    whole = len(vector) // BLOCK * BLOCK
    if whole:
        _in_place(result[:whole].reshape(-1, BLOCK))
    start = whole
    for length in block_lengths(len(vector) - whole):
        _in_place(result[start : start + length].reshape(1, length))
        start += length
    return result


def _in_place(blocks: npt.NDArray[T]) -> None:
    """H is the Kronecker product of two smaller ones: sums along one axis, then along the other, with contiguous inner loops."""
    count, length = blocks.shape
    inner = 1 << (length.bit_length() - 1) // 2
    table = blocks.reshape(count, length // inner, inner)
    _butterflies(table)
    turned = np.ascontiguousarray(table.swapaxes(1, 2))
    _butterflies(turned)
    table[...] = turned.swapaxes(1, 2)


def _butterflies(table: npt.NDArray[T]) -> None:
    """H along the middle axis, whose length is a power of two, in place."""
    count, length, inner = table.shape
    half = 1
    while half < length:
        pairs = table.reshape(count, length // (2 * half), 2, half * inner)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        total = first + second
        np.subtract(first, second, out=second)
        first[...] = total
        half *= 2
