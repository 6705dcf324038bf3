"""How often something may be done: a bucket that fills at a steady rate, and one bucket for each of many names. Pure."""

from collections import OrderedDict

MOST_NAMES = 1024
"""Names that are remembered; beyond them, whoever has been quiet longest is forgotten and begins anew."""


class Bucket:
    """Holds up to `burst` permits and gains `rate` a second."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._held = burst
        self._at = now

    def take(self, now: float) -> bool:
        """Take a permit if there is one; `now` in seconds of a clock that never goes back."""
        self._held = min(self._burst, self._held + self._rate * (now - self._at))
        self._at = now
        if self._held < 1.0:
            return False
        self._held -= 1.0
        return True


class Buckets:
    """A bucket for each name."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def take(self, name: str, now: float) -> bool:
        """Take a permit of this name if there is one."""
        bucket = self._buckets.pop(name, None) or Bucket(self._rate, self._burst, now)
        self._buckets[name] = bucket
        if len(self._buckets) > MOST_NAMES:
            self._buckets.popitem(last=False)
        return bucket.take(now)
