"""What the download machine knows: which blocks are there, which are asked for, and how the link behaves."""

import math
from dataclasses import dataclass

from edgefl.device.download_events import Counts
from edgefl.wire.messages import FileRef

FIRST_WINDOW = 2.0
LARGEST_WINDOW = 8.0
SHORTEST_PATIENCE = 2.0
LONGEST_PAUSE = 300.0
DROWNED = 2.0
"""Windows of blocks that are here already, received while a request waits."""
LISTEN = 3.0
"""Blocks' times after a gift for which a slow link waits for more."""
SLOW_BLOCK = 0.5
"""Seconds between two blocks that mark a slow link: 64 KiB per second."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for one block: when it was made first, and last, and how many duplicates had come before."""

    first: float
    last: float
    duplicates: int


@dataclass(frozen=True, slots=True)
class Download:
    """State of one download.

    Attributes:
        ref: the file.
        have: bitmap of the blocks that are there (bit i for block i).
        asked: outstanding requests by block index; at most `LARGEST_WINDOW`.
        window: blocks that may be outstanding.
        answer_time: smoothed seconds from request to block; 0 before the first.
        heard_at: when the last good block arrived.
        silences: stalls in a row without a good block between.
        resume_at: end of the pause, None while not pausing.
        counts: statistics.
        alone: whether requests are for this device alone.
        gap: smoothed seconds between two arriving blocks of the file.
        arrived_at: when the last block of the file arrived, good or not needed.
        gift_at: when the last block arrived that was missing and not asked for.
        first: where asking begins; it goes round from there.
        began: when it began, time without a connection left out.
        late_at: the deadline.
    """

    ref: FileRef
    have: int
    asked: dict[int, Asked]
    window: float
    answer_time: float
    heard_at: float
    silences: int
    resume_at: float | None
    counts: Counts
    alone: bool
    gap: float
    arrived_at: float
    gift_at: float
    first: int
    began: float
    late_at: float

    @property
    def complete(self) -> bool:
        """Whether all blocks are there."""
        return self.have.bit_count() == len(self.ref.blocks)

    @property
    def percent(self) -> int:
        """Progress, 0 to 100; 100 only when complete."""
        return 100 * self.have.bit_count() // len(self.ref.blocks)

    @property
    def patience(self) -> float:
        """Seconds after which a request is overdue."""
        return min(LONGEST_PAUSE, max(SHORTEST_PATIENCE, 4.0 * self.answer_time))

    @property
    def drowned(self) -> bool:
        """Whether blocks that are here already fill a slow link, so that what was asked for does not come through."""
        if not self.asked or self.gap < SLOW_BLOCK:
            return False
        before = min(asked.duplicates for asked in self.asked.values())
        return self.counts.duplicate - before >= DROWNED * max(self.window, FIRST_WINDOW)

    @property
    def listens_until(self) -> float:
        """Before this time there is nothing to ask for: others keep a slow link busy with blocks that are missing here."""
        return self.gift_at + LISTEN * self.gap if self.gap >= SLOW_BLOCK and not self.alone else -math.inf
