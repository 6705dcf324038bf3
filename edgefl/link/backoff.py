"""When to try again: exponential backoff with full jitter, so that a fleet does not come back in one wave.

Full jitter draws the whole pause at random, between nothing and a limit that doubles with every failure
(https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
"""

import random

SHORTEST_PAUSE = 0.5
LONGEST_PAUSE = 60.0
LASTED = 10.0
"""Seconds after which a connection counts as good. Two clients with one identity, which throw each other out, never reach it."""


class Backoff:
    """The time of the next attempt: `due`, in seconds of a monotonic clock; at once in the beginning."""

    def __init__(self, rng: random.Random) -> None:
        """Draw the jitter from `rng`."""
        self.due = 0.0
        self._rng = rng
        self._failures = 0

    def failed(self, now: float, lasted: float = 0.0) -> None:
        """An attempt failed, or a connection ended that had `lasted` so many seconds."""
        if lasted >= LASTED:
            self._failures = 0
        limit = min(LONGEST_PAUSE, SHORTEST_PAUSE * 2.0 ** min(self._failures, 10))
        self._failures += 1
        self.due = now + self._rng.uniform(0.0, limit)
