"""A lane of the delivery: the blocks of one file that one audience wants, or was sent. Pure.

Model: blocks to all go out in *passes*. In a pass each block goes out at most once. What is asked for again is *held* until
nothing else is wanted and those who are expected have gathered (`server.gather`); then the next pass begins with it.

Rule: the time of a sending is known in steps of `SLOT`, so that it fits into a block (`Block.sent`) and can be compared with what
a device gives back (`Want.heard`). In doubt, within one step, a block counts as under way.
"""

import math
from dataclasses import dataclass, replace

from edgefl.server.gather import Gathering

UNDER_WAY = 0.5
"""Seconds after sending during which another request for the same block is taken to have crossed it."""
REMEMBERED = 1800.0
"""Seconds for which it is known what was sent: a full queue in the broker takes as long to a link of 16 KB/s."""
SLOT = 0.1
"""Sendings closer together than this are remembered as one."""
MOST_SLOTS = 300
"""Slots of a lane that are remembered: the last ones in which something was sent."""
ALL = -1
"""Bitmap of all blocks of any file."""

LaneName = tuple[bytes, str]
"""SHA-256 of the file, and the device; empty for all."""


def slot_of(now: float) -> int:
    """The number of a moment's slot, at least 1."""
    return 1 + int(now / SLOT)


@dataclass(frozen=True, slots=True)
class Lane:
    """A file of which blocks are wanted or were sent.

    Attributes:
        want: bitmap of the blocks to send in this pass.
        due: when to send them.
        sent: what was sent lately: time and bitmap, oldest first.
        passed: bitmap of the blocks that wait for the next pass when they are asked for: before the first one all.
        held: bitmap of the blocks that do.
        gathering: who is waited for, while blocks are held.
    """

    want: int = 0
    due: float = 0.0
    sent: tuple[tuple[float, int], ...] = ()
    passed: int = ALL
    held: int = 0
    gathering: Gathering | None = None

    @property
    def sent_at(self) -> float:
        """When something was sent last."""
        return self.sent[-1][0] if self.sent else -math.inf

    @property
    def next_at(self) -> float:
        """When there is something to do: blocks to send, or the next pass to begin; never, if nothing is wanted."""
        if self.want:
            return self.due
        return self.gathering.ends_at if self.gathering else math.inf

    def wanting(self, bits: int, due: float) -> "Lane":
        """The lane after these blocks were asked for; `due` is when to send them if nothing else is wanted."""
        if not bits:
            return self
        return replace(self, want=self.want | bits, due=self.due if self.want else due)

    def passing(self, now: float) -> "Lane":
        """The lane with the next pass begun, if it is time for that."""
        if not self.held or self.next_at > now or self.want:
            return self
        return replace(self, want=self.held, due=now, passed=0, held=0, gathering=None)

    def under_way(self, now: float, seconds: float = UNDER_WAY) -> int:
        """Bitmap of the blocks sent within so many seconds."""
        bits = 0
        for when, indices in reversed(self.sent):
            if now - when >= seconds:
                break
            bits |= indices
        return bits

    def after(self, heard: int) -> int:
        """Bitmap of the blocks sent in this slot or later: still on their way to who has heard a block of this slot last."""
        bits = 0
        for when, indices in reversed(self.sent):
            if slot_of(when) < heard:
                break
            bits |= indices
        return bits

    def sending(self, bits: int, now: float) -> "Lane":
        """The lane after these blocks were sent."""
        sent = tuple(entry for entry in self.sent if now - entry[0] < REMEMBERED)
        older, slot = (sent[:-1], sent[-1]) if sent and slot_of(sent[-1][0]) == slot_of(now) else (sent, (now, 0))
        sent = (*older, (slot[0], slot[1] | bits))[-MOST_SLOTS:]
        return replace(self, want=self.want & ~bits, passed=self.passed | bits, sent=sent)


def indices_of(bits: int) -> tuple[int, ...]:
    """The block indices in a bitmap, ascending."""
    indices = []
    while bits:
        low = bits & -bits
        indices.append(low.bit_length() - 1)
        bits ^= low
    return tuple(indices)
