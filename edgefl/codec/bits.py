"""Bits, most significant first: what a writer collects as boolean arrays, and a reader of bytes that never overruns.

Rules: bits are padded with zeros to whole bytes; every count has one code; a reader raises UpdateError where bits are missing,
where padding is not zero and where something follows the end; it unpacks no more than what it is asked for.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from edgefl.codec.fixed import Bits, Buffer, Codes, codes_of
from edgefl.errors import UpdateError
from edgefl.layout import Index

ORDER = 4
"""Of the exponential Golomb code of counts (Teuhola 1978): counts below 16 take five bits."""
_MAX_ZEROS = 27
_PEEKED = 64
_BATCH = 1 << 18
"""Bits that are packed at a time, at least: a bit is a byte until then."""


def count_to_bits(count: int) -> Bits:
    """A count from 0 to 2**31 in exponential Golomb code: zeros that tell the length, then count + 16 in binary."""
    raised = count + (1 << ORDER)
    zeros = raised.bit_length() - ORDER - 1
    return np.array([c == "1" for c in "0" * zeros + f"{raised:b}"], dtype=np.bool_)


def number_to_bits(number: int) -> Bits:
    """A number from -2**30 to 2**30, folded to a count: 0, -1, 1, -2, 2, ... become 0, 1, 2, 3, 4, ..."""
    return count_to_bits(2 * number if number >= 0 else -2 * number - 1)


def pack(pieces: Iterable[Bits]) -> bytes:
    """All bits of the pieces, one after the other, padded to whole bytes.

    Of pieces that are made one after the other, no more are held than the last and a few bits.
    """
    packed: list[bytes] = []
    waiting, count = [np.empty(0, dtype=np.bool_)], 0
    for piece in pieces:
        waiting.append(piece)
        count += len(piece)
        if count >= _BATCH:
            bits = np.concatenate(waiting)
            rest = count % 8
            packed.append(np.packbits(bits[: count - rest]).tobytes())
            waiting, count = [bits[count - rest :].copy()], rest
    packed.append(np.packbits(np.concatenate(waiting)).tobytes())
    return b"".join(packed)


@dataclass(slots=True)
class BitReader:
    """A place in a row of bits. It moves; it has one owner.

    Attributes:
        data: the bytes that hold the bits.
        step: `align` moves on to a multiple of so many bits: 8 for whole bytes, 1 for nowhere.
        place: of the next bit.
    """

    data: Buffer
    step: int = 1
    place: int = 0

    def expect(self, count: int) -> None:
        """Refuse bits that end before `count` more.

        Raises:
            UpdateError: they do.
        """
        left = 8 * len(self.data) - self.place
        if count > left:
            raise UpdateError("update is truncated", expected=f"{count} more bits", found=str(left))

    def take(self, count: int) -> Bits:
        """The next `count` bits."""
        self.expect(count)
        bits = self._ahead(count)
        self.place += count
        return bits

    def codes(self, count: int, width: int) -> Codes:
        """The next `count` codes of `width` bits, 0 to 32; the type is that of `codes_of`."""
        self.expect(count * width)
        if self.place % 8:
            return codes_of(np.packbits(self.take(count * width)), count, width)
        self.place += count * width
        return codes_of(self.data[(self.place - count * width) // 8 :], count, width)

    def ones(self, count: int, limit: int) -> Index:
        """Distances from here of the next `count` ones, at least 1, which lie within `limit` bits; then moves behind the last."""
        places = np.flatnonzero(self._ahead(limit))[:count]
        if len(places) < count:
            raise UpdateError("update is truncated", expected=f"{count} ones within {limit} bits", found=str(len(places)))
        self.place += int(places[-1]) + 1
        return places

    def count(self, limit: int) -> int:
        """A count from 0 to `limit`, written by `count_to_bits`."""
        first = self.place // 8
        ahead = int.from_bytes(self.data[first : first + _PEEKED // 8 + 1].tobytes().ljust(_PEEKED // 8 + 1, b"\0"))
        ahead = ahead >> (8 - self.place % 8) & (1 << _PEEKED) - 1
        zeros = _PEEKED - ahead.bit_length()
        digits = zeros + ORDER + 1
        if zeros > _MAX_ZEROS:
            raise UpdateError("update is truncated", expected="a count", found=f"{zeros} zeros")
        self.expect(zeros + digits)
        value = (ahead >> (_PEEKED - zeros - digits)) - (1 << ORDER)
        if value > limit:
            raise UpdateError("a count in the update is too large", expected=f"at most {limit}", found=str(value))
        self.place += zeros + digits
        return value

    def number(self, limit: int) -> int:
        """A number from -limit to limit, written by `number_to_bits`."""
        folded = self.count(2 * limit)
        return folded // 2 if folded % 2 == 0 else -(folded + 1) // 2

    def align(self) -> None:
        """Move to the next whole step, over zeros."""
        rest = -self.place % self.step
        self.expect(rest)
        if rest and self._last_bits(rest):
            raise UpdateError("padding bits of an update are not zero")
        self.place += rest

    def end(self) -> None:
        """Refuse anything behind this place but zeros up to the next whole byte."""
        rest = 8 * len(self.data) - self.place
        if rest > 7 or (rest and self._last_bits(rest)):
            raise UpdateError("something follows the end of the update", found=f"{rest} bits")

    def _ahead(self, count: int) -> Bits:
        """The next `count` bits, or all that are left."""
        skipped = self.place % 8
        bits = np.unpackbits(self.data[self.place // 8 : (self.place + count + 7) // 8])
        return bits[skipped : skipped + count].view(np.bool_)

    def _last_bits(self, count: int) -> int:
        """The last `count` bits, 1 to 7, of the byte that the next bit is in."""
        return int(self.data[self.place // 8]) & (1 << count) - 1
