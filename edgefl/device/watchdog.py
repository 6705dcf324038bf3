"""The agent's side of the service manager's watchdog: fed after a turn of the loop, if that was progress.

Model: `turn` is called after every turn and `waiting` while the agent waits for the time of day; the first of them says that the
agent is ready. Words go out a few times per patience of the watchdog and when the status changes. When `device.progress` sees
none, the feeding ends, and after the patience is over the manager ends and restarts this process.
"""

import logging
import time
from collections.abc import Callable

from edgefl.device.notify import Notifier
from edgefl.device.progress import Seen, begin, look, status

log = logging.getLogger("edgefl.device")

FEEDS = 4
"""Signs of life per patience of the watchdog."""


class Watchdog:
    """Feeds the watchdog of one agent. Owned by the agent's one thread.

    Args:
        notifier: to the service manager.
        clock: monotonic seconds.
    """

    def __init__(self, notifier: Notifier, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._notifier = notifier
        self._clock = clock
        self._progress = begin(clock())
        self._ready = False
        self._fed_at = float("-inf")
        self._said = ""
        self._complaint = False

    def turn(self, seen: Seen) -> None:
        """The loop has turned, and this is what it sees."""
        self._progress, reason = look(self._progress, seen, self._clock())
        if not reason:
            self._alive(status(seen))
        elif not self._complaint:
            log.error("no progress: %s", reason)
            self._notifier.status(f"no progress: {reason}")
        self._complaint = bool(reason)

    def waiting(self, what: str) -> None:
        """The agent waits on purpose, and looks after it."""
        self._progress = begin(self._clock())
        self._alive(what)

    def stopping(self) -> None:
        """The agent ends."""
        self._notifier.stopping()
        self._notifier.close()

    def _alive(self, said: str) -> None:
        now = self._clock()
        if not self._ready:
            self._ready = True
            self._notifier.ready()
        if said != self._said or self._complaint:
            self._said = said
            self._notifier.status(said)
        if self._notifier.patience is not None and now - self._fed_at >= self._notifier.patience / FEEDS:
            self._fed_at = now
            self._notifier.alive()
