"""A lane of the delivery: the blocks of one file that one audience wants, or was just sent. Pure."""

from dataclasses import dataclass, replace

UNDER_WAY = 0.5
"""Seconds after sending during which another request for the same block is taken to have crossed it."""
REMEMBERED = 30.0
"""Seconds for which it is known what was sent, for devices that are behind."""
SLOT = 0.1
"""Sendings closer together than this are remembered as one."""

LaneName = tuple[bytes, str]
"""SHA-256 of the file, and the device; empty for all."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A file of which blocks are wanted or were just sent.

    Attributes:
        want: bitmap of the blocks to send.
        due: when to send them.
        sent: what was sent lately: time and bitmap, oldest first.
    """

    want: int = 0
    due: float = 0.0
    sent: tuple[tuple[float, int], ...] = ()

    def under_way(self, now: float, seconds: float = UNDER_WAY) -> int:
        """Bitmap of the blocks sent within so many seconds."""
        bits = 0
        for when, indices in self.sent:
            bits |= indices if now - when < seconds else 0
        return bits

    def sending(self, bits: int, now: float) -> "Lane":
        """The lane after these blocks were sent."""
        sent = tuple(entry for entry in self.sent if now - entry[0] < REMEMBERED)
        older, slot = (sent[:-1], sent[-1]) if sent and now - sent[-1][0] < SLOT else (sent, (now, 0))
        return replace(self, want=self.want & ~bits, sent=(*older, (slot[0], slot[1] | bits)))


def indices_of(bits: int) -> tuple[int, ...]:
    """The block indices in a bitmap, ascending."""
    indices = []
    while bits:
        low = bits & -bits
        indices.append(low.bit_length() - 1)
        bits ^= low
    return tuple(indices)
