"""The time of day on boards that forget it: never earlier than what is known to have passed.

Model: a Raspberry Pi before the 5 has no clock that survives a power cut; it wakes up in 1970, or at the time of its last orderly
end, until a time server has answered. The file `clock` in the state directory keeps two times:

* *proved*: the greatest time that signed words have named (`at_least`), or the start (`lowest`). Time never goes below it.
* *seen*: the greatest time that the system's clock has shown. Time does not go below it while the clock is not synchronised.

A clock that was years ahead by mistake must not condemn the board to live there. So *seen* gives way to better evidence: to a
synchronised clock, and to a clock that agrees with a signed time. While time is held up by a bound, it goes on at the pace of the
monotonic clock.

Rules: the file is written at most every ten minutes and at the end; a disk that cannot be written costs the memory, not the
agent. A proved time that lies days ahead of a synchronised clock is not believed.
"""

import ctypes
import logging
import time
from collections.abc import Callable
from pathlib import Path

from edgefl.errors import StoreError
from edgefl.store.atomic import write_file

log = logging.getLogger("edgefl.store")

SOFTWARE = 1_735_689_600.0
"""2025-01-01, in seconds since 1970: this software is younger, so it is later than that."""
LATEST = 7_258_118_400.0
"""2200-01-01: a file that says more is damaged."""
WRITE_EVERY = 600.0
AGREES = 86400.0
"""Seconds by which two clocks that are both right may differ: signed words take their time."""
TIME_ERROR = 5
"""What adjtimex(2) returns for a clock that is not synchronised."""
SYNCHRONISED = Path("/run/systemd/timesync/synchronized")
"""systemd-timesyncd makes this file when it has set the clock; readable where the system call is forbidden."""


def synchronised() -> bool | None:
    """Whether the kernel's clock is synchronised; None where it does not tell."""
    if SYNCHRONISED.exists():
        return True
    try:
        told = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))  # all zero: asks and changes nothing
    except (OSError, AttributeError):
        return None
    return None if told < 0 else bool(told != TIME_ERROR)


class SteadyWall:
    """Seconds since 1970, as a function. Owned by one thread.

    Args:
        path: the file `clock`.
        lowest: seconds since 1970 that have passed for certain, for example the date of the device's certificate.
        system: the system's clock.
        monotonic: seconds that always go on.
        synced: whether the system's clock is synchronised.
    """

    def __init__(
        self,
        path: Path,
        *,
        lowest: float = SOFTWARE,
        system: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        synced: Callable[[], bool | None] = synchronised,
    ) -> None:
        self._path = path
        self._system = system
        self._monotonic = monotonic
        self._synced = synced
        seen, proved = _read(path)
        self._proved = max(proved, lowest, SOFTWARE)
        self._seen = seen
        self._since = monotonic()  # when the bounds held
        self._written = (seen, proved)
        self._written_at = float("-inf")
        self._failed = False

    def __call__(self) -> float:
        """What time it is, as far as is known; from time to time it is written down."""
        now = self.now
        moved = max(abs(self._seen - self._written[0]), abs(self._proved - self._written[1]))
        if moved >= WRITE_EVERY and self._since - self._written_at >= WRITE_EVERY:
            self._write()
        return now

    @property
    def now(self) -> float:
        """What time it is, as far as is known; nothing is written."""
        moment = self._monotonic()
        system, passed, self._since = self._system(), moment - self._since, moment
        self._seen, self._proved = self._seen + passed, self._proved + passed
        if system >= self._seen or self._synced():
            self._seen = system  # also when the clock was ahead, and has been set right
        return max(self._seen, self._proved)

    @property
    def behind(self) -> float:
        """Seconds by which the system's clock lies below what has passed for certain; 0 if it does not."""
        return max(0.0, self._proved + self._monotonic() - self._since - self._system())

    def at_least(self, seconds: float) -> None:
        """A signature that holds says that this moment has passed."""
        system, now = self._system(), self.now
        if not 0.0 <= seconds <= LATEST or (seconds > system + AGREES and self._synced()):
            return
        self._proved = max(self._proved, seconds)
        if abs(system - seconds) <= AGREES and now > system:
            self._seen = system  # it agrees with the server: what was seen before was the mistake

    def close(self) -> None:
        """Write down the time; as far as the disk lets us."""
        self()
        self._write()

    def _write(self) -> None:
        self._written, self._written_at = (self._seen, self._proved), self._since  # a failure, too, rests for ten minutes
        try:
            write_file(self._path, b"%.0f %.0f\n" % self._written)
        except StoreError as error:
            if not self._failed:
                log.warning("the time cannot be remembered: %s", error)
            self._failed = True
        else:
            self._failed = False


def _read(path: Path) -> tuple[float, float]:
    """Seen and proved; zeros when there is no usable file."""
    try:
        seen, proved = (float(word) for word in path.read_text().split())
    except (OSError, ValueError):
        return 0.0, 0.0
    return (seen, proved) if 0.0 <= seen <= LATEST and 0.0 <= proved <= LATEST else (0.0, 0.0)
