"""Bits as boolean arrays, most significant first: codes of a fixed width, counts of any size, and a reader that never overruns.

Rules: bits are padded with zeros to whole bytes; every count has one code; a reader raises UpdateError where bits are missing,
where padding is not zero and where something follows the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgefl.errors import UpdateError
from edgefl.layout import Index

Bits = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.integer]
Buffer = npt.NDArray[np.uint8]

ORDER = 4
"""Of the exponential Golomb code of counts (Teuhola 1978): counts below 16 take five bits."""


def packed_length(count: int, width: int) -> int:
    """Bytes that `count` codes of `width` bits take."""
    return (count * width + 7) // 8


def codes_to_bits(codes: Codes, width: int) -> Bits:
    """The bits of non-negative codes below `2**width`, with `width` in 0 to 32."""
    container = 8 if width <= 8 else 32
    columns = codes.astype(f">u{container // 8}").view(np.uint8).reshape(-1, container // 8)
    return np.unpackbits(columns, axis=1)[:, container - width :].reshape(-1).view(np.bool_)


def codes_of(bits: Bits, count: int, width: int) -> Index:
    """The codes, int64, in exactly `count * width` bits."""
    codes = np.zeros(count, dtype=np.int64)
    for column in bits.reshape(count, width).T:
        codes <<= 1
        codes |= column
    return codes


def count_to_bits(count: int) -> Bits:
    """A count from 0 to 2**31 in exponential Golomb code: zeros that tell the length, then count + 16 in binary."""
    raised = count + (1 << ORDER)
    zeros = raised.bit_length() - ORDER - 1
    return np.array([c == "1" for c in "0" * zeros + f"{raised:b}"], dtype=np.bool_)


def number_to_bits(number: int) -> Bits:
    """A number from -2**30 to 2**30, folded to a count: 0, -1, 1, -2, 2, ... become 0, 1, 2, 3, 4, ..."""
    return count_to_bits(2 * number if number >= 0 else -2 * number - 1)


def pack(pieces: Sequence[Bits]) -> bytes:
    """All bits of the pieces, one after the other, padded to whole bytes."""
    return np.packbits(np.concatenate([np.empty(0, dtype=np.bool_), *pieces])).tobytes()


@dataclass(slots=True)
class BitReader:
    """A place in a row of bits. It moves; it has one owner.

    Attributes:
        bits: all of them; memory is eight times that of the bytes.
        step: `align` moves on to a multiple of so many bits: 8 for whole bytes, 1 for none.
        place: of the next bit.
    """

    bits: Bits
    step: int = 1
    place: int = 0

    @classmethod
    def over(cls, data: Buffer, step: int = 1) -> "BitReader":
        """A reader of all bits of these bytes."""
        return cls(np.unpackbits(data).view(np.bool_), step)

    def expect(self, count: int) -> None:
        """Refuse bits that end before `count` more.

        Raises:
            UpdateError: they do.
        """
        if count > len(self.bits) - self.place:
            raise UpdateError("update is truncated", expected=f"{count} more bits", found=str(len(self.bits) - self.place))

    def take(self, count: int) -> Bits:
        """The next `count` bits."""
        self.expect(count)
        self.place += count
        return self.bits[self.place - count : self.place]

    def ones(self, count: int, limit: int) -> Index:
        """Distances from here of the next `count` ones, at least 1, which lie within `limit` bits; then moves behind the last."""
        places = np.flatnonzero(self.bits[self.place : self.place + limit])[:count]
        if len(places) < count:
            raise UpdateError("update is truncated", expected=f"{count} ones within {limit} bits", found=str(len(places)))
        self.place += int(places[-1]) + 1
        return places

    def count(self, limit: int) -> int:
        """A count from 0 to `limit`, written by `count_to_bits`."""
        zeros = int(self.ones(1, 32 - ORDER)[0])
        self.place -= 1
        digits = self.take(zeros + ORDER + 1)
        value = int("".join("1" if d else "0" for d in digits), 2) - (1 << ORDER)
        if value > limit:
            raise UpdateError("a count in the update is too large", expected=f"at most {limit}", found=str(value))
        return value

    def number(self, limit: int) -> int:
        """A number from -limit to limit, written by `number_to_bits`."""
        folded = self.count(2 * limit)
        return folded // 2 if folded % 2 == 0 else -(folded + 1) // 2

    def align(self) -> None:
        """Move to the next whole step, over zeros."""
        if self.take(-self.place % self.step).any():
            raise UpdateError("padding bits of an update are not zero")

    def end(self) -> None:
        """Refuse anything behind this place but zeros up to the next whole byte."""
        rest = self.bits[self.place :]
        if len(rest) > 7 or rest.any():
            raise UpdateError("something follows the end of the update", found=f"{len(rest)} bits")
