"""What a device says about itself: its birth and death, its progress and its troubles.

Rules: saying something never fails for the caller: a full queue is logged, and a later report brings newer news. The same trouble
is told once in a while, and many different ones only now and then: neither a full disk nor a flood of garbage becomes a flood of
reports.
"""

import logging
from collections.abc import Callable, Iterable

from edgefl import __version__
from edgefl.device.config import DeviceConfig
from edgefl.errors import LinkError
from edgefl.link.contract import Link, Message
from edgefl.wire import topics
from edgefl.wire.messages import encode
from edgefl.wire.presence import Installed, Report, State
from edgefl.wire.releases import Manifest

TOLD_AGAIN = 600.0
"""Seconds after which the same trouble is told again."""
TOLD_APART = 2.0
"""Seconds between two different troubles."""
LONGEST_ERROR = 500

log = logging.getLogger("edgefl.device")


def death(device: str, session: int) -> Message:
    """The last words of a session: the link's will, and what a clean end says itself."""
    return Message(topics.state(device), encode(State(session, online=False)), qos=1, retain=True)


class Voice:
    """Speaks for one device.

    Args:
        config: who speaks.
        link: to the broker.
        session: number of this start.
        memory: peak bytes of agent and trainer together.
        clock: monotonic seconds.
    """

    def __init__(
        self, config: DeviceConfig, link: Link, session: int, *, memory: Callable[[], int], clock: Callable[[], float]
    ) -> None:
        self._config = config
        self._link = link
        self._session = session
        self._memory = memory
        self._clock = clock
        self._trouble = ""
        self._told_at: float | None = None

    def birth(self, active: Iterable[Manifest]) -> None:
        """Say that the device is there, and what it holds."""
        models = tuple(Installed(m.model, m.version, m.variant) for m in active)
        config = self._config
        software = f"edgefl-{__version__}"
        state = State(self._session, online=True, profile=config.profile, engine=config.engine, software=software, models=models)
        self._say(topics.state(config.id), encode(state), retain=True)

    def report(
        self,
        model: str,
        version: int,
        number: int,
        step: str,
        *,
        percent: int = 0,
        error: str = "",
        code: str = "",
        fetched: int = 0,
    ) -> None:
        """Tell how far a model is; everything as in `wire.presence.Report`."""
        received = self._link.traffic.received_bytes
        told = error[:LONGEST_ERROR]
        report = Report(model or "none", version, number, step, percent, received, self._memory(), told, code, fetched)
        self._say(topics.report(self._config.id), encode(report))

    def trouble(self, model: str, error: str, *, code: str = "") -> None:
        """Log what went wrong, and tell it unless it has been told lately; `model` is empty if none is concerned."""
        now = self._clock()
        pause = 0.0 if self._told_at is None else now - self._told_at
        log.warning("%s%s", f"{model}: " if model else "", error, extra={"model": model})
        if self._told_at is None or pause >= (TOLD_AGAIN if error == self._trouble else TOLD_APART):
            self._trouble, self._told_at = error, now
            self.report(model, 0, 0, "failed", error=error, code=code)

    def _say(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        try:
            self._link.publish(topic, payload, retain=retain)
        except LinkError as error:
            log.warning("cannot publish on %s: %s", topic, error)
