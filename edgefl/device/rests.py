"""Files that have failed rest for a while: 15 s, doubled with each failure, up to 15 minutes. Pure."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

PAUSE = 15.0
"""Seconds to wait after the first failure of a file."""
LONGEST_PAUSE = 900.0


@dataclass(frozen=True, slots=True)
class Rests:
    """How often each file has failed, and until when it rests; by SHA-256."""

    files: Mapping[bytes, tuple[int, float]] = field(default_factory=dict)

    def failed(self, sha256: bytes, now: float) -> "Rests":
        """One more failure."""
        failures = self.files.get(sha256, (0, 0.0))[0] + 1
        pause = min(LONGEST_PAUSE, PAUSE * 2.0 ** min(failures - 1, 16))
        return replace(self, files={**self.files, sha256: (failures, now + pause)})

    def only(self, wanted: AbstractSet[bytes]) -> "Rests":
        """What is known of these files; the others begin anew."""
        return replace(self, files={sha256: rest for sha256, rest in self.files.items() if sha256 in wanted})

    def resting(self, sha256: bytes, now: float) -> bool:
        """Whether a file is to be left alone."""
        return sha256 in self.files and self.files[sha256][1] > now

    def over(self, now: float) -> bool:
        """Whether any file has rested long enough."""
        return any(until <= now for _, until in self.files.values())

    def ends(self, now: float) -> list[float]:
        """When the pauses that last will end."""
        return [until for _, until in self.files.values() if until > now]
