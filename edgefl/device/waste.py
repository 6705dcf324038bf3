"""Noticing that a slow link is busy with blocks that nobody here needs any more. Pure.

Model: what a device has unsubscribed from may still wait for it in the broker, hundreds of blocks that others have asked for. On
a slow link they come for minutes, and everything else, a receipt or an order to go back, comes after them. A broker forgets
what need not be acknowledged when the connection ends, so a new connection is the cure: it costs a handshake.

Rule: more than `MOST` useless blocks in a row, `SLOW_BLOCK` seconds or more apart; not again within `APART` seconds.
"""

import math
from dataclasses import dataclass, replace

from edgefl.device.download_state import SLOW_BLOCK

MOST = 6
APART = 120.0


@dataclass(frozen=True, slots=True)
class Waste:
    """How many useless blocks have come in a row, since when, and when a cure was begun last."""

    run: int = 0
    since: float = 0.0
    cured_at: float = -math.inf

    def heard(self, now: float, *, useful: bool) -> "Waste":
        """A block has come."""
        if useful:
            return replace(self, run=0)
        return replace(self, run=self.run + 1, since=self.since if self.run else now)

    def cured(self, now: float) -> "Waste":
        """The connection is made anew."""
        return Waste(cured_at=now)

    def too_much(self, now: float) -> bool:
        """Whether it is worth a new connection."""
        slow = now - self.since >= SLOW_BLOCK * (self.run - 1)
        return self.run > MOST and slow and now - self.cured_at >= APART
