"""Codes of a fixed width, whole arrays at a time.

Model: eight codes of w bits are w bytes, so that every eighth code begins a byte. For w up to 8 those bytes are one 64-bit
word, for w up to 16 two; a word's codes are moved apart into lanes of 8 or 16 bits in three or two steps, each of which moves
one half of the codes of every lane into a lane of its own, in all words at once (parallel bit deposit; Warren, Hacker's
Delight, 7-4).

Rule: bits are most significant first; a reader looks at no more bits than there are codes.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np
import numpy.typing as npt

from edgefl.codec.pieces import pieces

Bits = npt.NDArray[np.bool_]
Buffer = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.integer]
Words = npt.NDArray[np.uint64]

MAX_WIDTH = 32
_GROUP = 8
_WORD = 8


def packed_length(count: int, width: int) -> int:
    """Bytes that `count` codes of `width` bits take."""
    return (count * width + 7) // 8


def codes_to_bits(codes: Codes, width: int) -> Bits:
    """The bits of non-negative codes below `2**width`, with `width` in 0 to 32."""
    container = 8 if width <= 8 else 32
    bits = np.unpackbits(codes.astype(f">u{container // 8}").view(np.uint8))
    return bits.reshape(-1, container)[:, container - width :].reshape(-1).view(np.bool_)


def code_pieces(codes: Codes, width: int) -> Iterator[Bits]:
    """The same in pieces: a bit takes a byte, all of them may be more than there is room for."""
    for piece in pieces(len(codes) if width else 0):
        yield codes_to_bits(codes[piece], width)


def codes_of(data: Buffer, count: int, width: int) -> Codes:
    """The first `count` codes of `width` bits, 0 to 32, in bytes that hold at least so many.

    Returns:
        Shape `(count,)`; uint8 for widths up to 8, uint16 up to 16, int64 beyond.
    """
    if width == 0:
        return np.zeros(count, dtype=np.uint8)
    if width == 1:
        return np.unpackbits(data[: packed_length(count, 1)])[:count]
    if width > 16:
        return _column_by_column(np.unpackbits(data[: packed_length(count, width)])[: count * width], count, width)
    groups = -(-count // _GROUP)
    padded = np.zeros(groups * width + _WORD, dtype=np.uint8)
    padded[: packed_length(count, width)] = data[: packed_length(count, width)]
    if width <= 8:
        return _spread(_words(padded, groups, width, 0) >> np.uint64(64 - 8 * width), 4 * width, 8).view(np.uint8)[:count]
    words = np.empty((groups, 2), dtype=np.uint64)
    words[:, 0] = _words(padded, groups, width, 0) >> np.uint64(64 - 4 * width)
    words[:, 1] = _words(padded, groups, width, width - _WORD) & np.uint64((1 << 4 * width) - 1)
    return _spread(words.reshape(-1), 2 * width, 16).view(">u2").astype(np.uint16)[:count]


def _words(data: Buffer, groups: int, width: int, offset: int) -> Words:
    """Eight bytes of each group of `width` bytes, from the `offset`-th on, as a number."""
    windows: npt.NDArray[np.uint64] = np.ndarray((groups,), ">u8", data.data, offset, (width,))
    return windows.astype(np.uint64)


def _spread(words: Words, half: int, lane: int) -> Words:
    """Words of codes, side by side at the low end, as big-endian words of codes in lanes of their own.

    Args:
        words: they change.
        half: bits of half the codes of a word.
        lane: bits of a lane in the end, 8 or 16.
    """
    for upper, factor in _moves(half, lane):
        moved = words & upper
        moved *= factor
        words += moved
    return words.astype(">u8")


@cache
def _moves(half: int, lane: int) -> tuple[tuple[np.uint64, np.uint64], ...]:
    """For each step the upper halves of the codes in all lanes, and 2**shift - 1: times that and added to itself is shifted."""
    moves, room = [], 32
    while room >= lane:
        upper = sum(((1 << half) - 1) << (half + place) for place in range(0, 64, 2 * room))
        moves.append((np.uint64(upper), np.uint64((1 << (room - half)) - 1)))
        room, half = room // 2, half // 2
    return tuple(moves)


def _column_by_column(bits: npt.NDArray[np.uint8], count: int, width: int) -> npt.NDArray[np.int64]:
    codes = np.zeros(count, dtype=np.int64)
    for column in bits.reshape(count, width).T:
        codes <<= 1
        codes |= column
    return codes
