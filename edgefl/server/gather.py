"""How long blocks wait until the devices that are expected to want them have asked, so that they go out once for all. Pure.

Model. What is sent to all before the last device listens has to be sent again. So the first block of a file waits for the devices
that are expected, and so does each block that has been sent already: those who come late wait for each other.

    first request -> a gathering opens; it knows who has not asked yet
    a device that is expected asks -> one less
    nobody is missing any more, nobody has come for `QUIET` seconds, or the time is up -> it ends

Rules:

* The time is in proportion to those who are missing, `PATIENCE` seconds for each, and has a bound that the operator sets. When
  nobody is missing nobody waits.
* Only a device that is expected holds the end off, and only once: neither strangers nor one that asks again and again can.
"""

from dataclasses import dataclass, replace

GATHER = 5.0
"""Seconds that a gathering takes at most, unless the operator says otherwise."""
PATIENCE = 0.05
"""Seconds for each device that is missing: a hundred are worth five."""
QUIET = 0.5
"""Seconds without anybody new, after which nobody is waited for: who has not asked by then wants nothing, or is a straggler."""


@dataclass(frozen=True, slots=True)
class Gathering:
    """Who is waited for.

    Attributes:
        earliest: not before this time: requests that arrive together are merged.
        latest: when the last device that was missing came, or the gathering was opened.
        until: when the time is up.
        missing: devices that are expected and have not asked.
    """

    earliest: float
    latest: float
    until: float
    missing: frozenset[str]

    @property
    def ends_at(self) -> float:
        """When it ends if nobody comes any more."""
        return max(self.earliest, min(self.until, self.latest + QUIET)) if self.missing else self.earliest

    def joined(self, device: str, now: float) -> "Gathering":
        """The gathering after a device has asked."""
        return replace(self, latest=now, missing=self.missing - {device}) if device in self.missing else self


def gathering(missing: frozenset[str], merge: float, longest: float, now: float) -> Gathering:
    """A gathering that opens now.

    Args:
        missing: devices that are waited for.
        merge: seconds that it takes at least.
        longest: seconds that it takes at most, if that is more.
        now: time.
    """
    return Gathering(now + merge, now, now + min(longest, PATIENCE * len(missing)), missing)
