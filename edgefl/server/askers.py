"""What each device may cost: how often it may ask, and how often for the same block again. Pure.

Model: two token buckets per device. One counts requests. The other counts *repetitions*: blocks that the device has asked for
before. The first request for a block is every device's right and is never throttled, so that an honest device runs at full
speed; a device that asks for the same blocks over and over costs the fleet its bucket and no more. Repetitions that are merged
with others' requests or were just sent cost nothing, and are not counted.

Rules:

* Known are the `MOST_ASKERS` devices that asked last, each with the `MOST_REMEMBERED` files that it asked for last: a bit per
  block, or 1/262144 of the file's length. A device that is forgotten, or silent for `FORGOTTEN_AFTER` seconds, begins anew.
* A device without tokens is not punished beyond that: tokens come back, and what it needs it asks for again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice

REQUEST_RATE = 100.0
"""Requests per second: four files at once from a link of 10 MB/s make 80."""
REQUEST_BURST = 200.0
REPEAT_RATE = 16.0
"""Repeated blocks per second, 512 KiB: a twentieth of a link of 10 MB/s may be lost before its repetitions are slowed down."""
REPEAT_BURST = 64.0
MOST_ASKERS = 4096
MOST_REMEMBERED = 4
"""Files per device; it fetches as many side by side."""
FORGOTTEN_AFTER = 600.0


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tokens as of a time; full in the beginning."""

    tokens: float
    at: float

    def filled(self, rate: float, depth: float, now: float) -> "Bucket":
        """The bucket after the time since: `rate` tokens per second, at most `depth`."""
        return Bucket(min(depth, self.tokens + rate * max(0.0, now - self.at)), now)

    def without(self, tokens: float) -> "Bucket":
        """The bucket after so many tokens were taken."""
        return Bucket(self.tokens - tokens, self.at)


@dataclass(frozen=True, slots=True)
class Asker:
    """One device.

    Attributes:
        requests, repeats: its buckets.
        asked: bitmap of the blocks that it has asked for, by SHA-256 of the file; the latest file last.
        alone: files that it has asked for alone.
        next_at: no block alone to it before this time.
    """

    requests: Bucket
    repeats: Bucket
    asked: Mapping[bytes, int] = field(default_factory=dict)
    alone: frozenset[bytes] = frozenset()
    next_at: float = 0.0

    def remembering(self, sha256: bytes, bits: int, *, alone: bool) -> "Asker":
        """The asker after it has asked for these blocks."""
        asked = {name: known for name, known in self.asked.items() if name != sha256}
        asked[sha256] = self.asked.get(sha256, 0) | bits
        asked = dict(islice(asked.items(), max(0, len(asked) - MOST_REMEMBERED), None))
        kept = frozenset(name for name in self.alone if name in asked)
        return replace(self, asked=asked, alone=kept | {sha256} if alone else kept)


Askers = Mapping[str, Asker]


def admit(askers: Askers, device: str, now: float) -> tuple[Askers, Asker | None]:
    """Count a request: all askers with this one as the latest, and what is known of it; None if it asks too often."""
    old = askers.get(device)
    if old is None or now - old.requests.at > FORGOTTEN_AFTER:
        old = Asker(Bucket(REQUEST_BURST, now), Bucket(REPEAT_BURST, now))
    requests = old.requests.filled(REQUEST_RATE, REQUEST_BURST, now)
    repeats = old.repeats.filled(REPEAT_RATE, REPEAT_BURST, now)
    heard = requests.tokens >= 1.0
    asker = replace(old, requests=requests.without(1.0) if heard else requests, repeats=repeats)
    return with_asker(askers, device, asker), asker if heard else None


def with_asker(askers: Askers, device: str, asker: Asker) -> Askers:
    """All askers with this one as the latest; the one that has been silent longest goes if there are too many."""
    kept = dict(askers)
    kept.pop(device, None)
    if len(kept) >= MOST_ASKERS:
        kept.pop(next(iter(kept)))
    kept[device] = asker
    return kept


def allowed(asker: Asker, sha256: bytes, bits: int) -> tuple[Asker, int]:
    """Which of these blocks, that nobody else wants now, a device may have: all new ones, and repetitions while tokens last."""
    repeated = bits & asker.asked.get(sha256, 0)
    room = int(asker.repeats.tokens)
    granted = 0
    while repeated and room > 0:
        low = repeated & -repeated
        granted |= low
        repeated ^= low
        room -= 1
    asker = replace(asker, repeats=asker.repeats.without(granted.bit_count()))
    return asker, bits & ~repeated
