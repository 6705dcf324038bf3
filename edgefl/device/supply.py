"""Which files sources off the broker deliver now, and which sources rest because they have failed.

Model: for each file one source at a time; the next one when it has failed; none any more when all have. A source that has failed
rests for `REST_SECONDS` for all files, so that a stick that is not plugged in, or a server that is down, delays a version once.

Rule: a thread that neither delivers nor ends for `STILL_SECONDS` (a name server that does not answer, a card that hangs in the
kernel) is given up, like a source that has failed.
"""

import logging
import ssl
from collections.abc import Callable, Iterator

from edgefl.device.mirror import Bell, SourceFetch
from edgefl.wire.files import FileRef

REST_SECONDS = 900.0
STILL_SECONDS = 120.0

log = logging.getLogger("edgefl.device")


class Supply:
    """The running fetches from sources. Owned by the fetcher.

    Args:
        clock: monotonic seconds.
        context: which web servers are believed; None for the system's certificates.
    """

    def __init__(self, clock: Callable[[], float], context: ssl.SSLContext | None) -> None:
        self._clock = clock
        self._context = context
        self._running: dict[bytes, SourceFetch] = {}
        self._heard: dict[bytes, float] = {}
        self._resting: dict[str, float] = {}
        self._bell: Bell | None = None

    @property
    def wake(self) -> tuple[int, ...]:
        """File descriptors that become readable when there is something to take."""
        return (self._bell.descriptor,) if self._bell and self._running else ()

    def begin(self, sources: tuple[str, ...], ref: FileRef, have: int) -> bool:
        """Fetch what a file misses from the first source that does not rest; whether there is one."""
        now = self._clock()
        self._resting = {source: until for source, until in self._resting.items() if until > now}
        source = next((source for source in sources if source not in self._resting), None)
        if source is None:
            return False
        self._bell = self._bell or Bell()
        self._heard[ref.sha256] = now
        self._running[ref.sha256] = SourceFetch(source, ref, have, ring=self._bell.ring, context=self._context)
        return True

    def take(self) -> Iterator[tuple[bytes, list[tuple[int, bytes]], bool]]:
        """Of each file its SHA-256, the blocks that have come, and whether its source has ended."""
        if self._bell and self._running:
            self._bell.silence()
        for sha256, fetch in list(self._running.items()):
            now, blocks = self._clock(), list(fetch.take())
            self._heard[sha256] = now if blocks else self._heard[sha256]
            still = now - self._heard[sha256] > STILL_SECONDS
            ended = fetch.done or still
            if ended:
                self.cancel(sha256)
                if still or fetch.error is not None:
                    log.warning("file %s: %s", sha256.hex()[:16], fetch.error or f"source {fetch.source} does not answer")
                    self._resting[fetch.source] = now + REST_SECONDS
            if blocks or ended:
                yield sha256, blocks, ended

    def cancel(self, sha256: bytes) -> None:
        """A file is not wanted any more."""
        fetch = self._running.pop(sha256, None)
        if fetch is not None:
            del self._heard[sha256]
            fetch.cancel()

    def close(self) -> None:
        """End everything."""
        for sha256 in list(self._running):
            self.cancel(sha256)
        if self._bell is not None:
            self._bell.close()
            self._bell = None
