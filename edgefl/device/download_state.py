"""What the download machine knows: which blocks are there, which are asked for, and how the link behaves."""

import math
from dataclasses import dataclass

from edgefl.device.download_events import Counts
from edgefl.wire.files import FileRef

FIRST_WINDOW = 2.0
LARGEST_WINDOW = 8.0
SHORTEST_PATIENCE = 2.0
LONGEST_PAUSE = 300.0
LONG_ANSWER = 4.0
"""Seconds from request to block beyond which a larger window would only make a longer queue, before pings as well."""
DROWNED = 2.0
"""Windows of unwanted blocks, received while a request waits."""
SILENT = 2
"""Silences in a row after which a slow link is taken to have lost what was under way."""
LISTEN = 1.5
"""Blocks' times after a gift for which a slow link waits for more."""
REMIND = 4.0
"""Blocks' times after which a slow link asks again."""
SLOW_BLOCK = 0.5
"""Seconds between two blocks that mark a slow link: 64 KiB per second."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for one block: when it was made first, and last, and how many unwanted blocks had come before."""

    first: float
    last: float
    unwanted: int


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
        since: when this connection began, or the download if that was later.
        heard: `sent` of the last block that came over this connection; 0 before the first.
        repeated: bitmap of the blocks that were asked for more than once, and may come once more for that reason.
        unwanted: blocks that were here already, and not because they were asked for more than once.
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
    since: float
    heard: int = 0
    repeated: int = 0
    unwanted: int = 0

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
    def slow(self) -> bool:
        """Whether blocks come so far apart that this link is the narrow place."""
        return self.gap >= SLOW_BLOCK

    @property
    def reminder(self) -> float:
        """Seconds after which a request is repeated: soon on a slow link, where the server knows late from lost."""
        return min(self.patience, max(SHORTEST_PATIENCE, REMIND * self.gap)) if self.slow else self.patience

    @property
    def drowned(self) -> bool:
        """Whether unwanted blocks fill a slow link, so that what was asked for does not come through.

        As long as good blocks are the greater part of all that came, the company costs less than twice the time.
        """
        if not self.asked or not self.slow:
            return False
        before = min(asked.unwanted for asked in self.asked.values())
        return self.unwanted - before >= DROWNED * max(self.window, FIRST_WINDOW) and self.unwanted > self.counts.stored

    @property
    def deaf(self) -> bool:
        """Whether nothing has come for so long that what was under way to this device is lost, not late."""
        return self.silences >= (SILENT if self.slow or self.arrived_at <= self.since else 1)

    @property
    def listens_until(self) -> float:
        """Before this time there is nothing to ask for: others keep a slow link busy with blocks that are missing here."""
        return self.gift_at + LISTEN * self.gap if self.slow and not self.alone else -math.inf
