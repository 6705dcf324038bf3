"""What a device says: its birth and death, its reports, its updates. One place that knows topics and packet sizes.

Rule: saying something never fails for the caller. A full queue is logged; what matters (an update) is said again by the session
machine until it has been answered, what does not is news that a later report brings.
"""

import logging
from collections.abc import Iterable

from edgefl import __version__
from edgefl.device.config import DeviceConfig
from edgefl.errors import LinkError
from edgefl.link.contract import Link, Message
from edgefl.store.outbox import OutboxEntry
from edgefl.wire import topics
from edgefl.wire.messages import PART_SIZE, Installed, Manifest, Report, State, UpdatePart, encode

log = logging.getLogger("edgefl.device")


def death(device: str, session: int) -> Message:
    """The last words of a session: the link's will, and what a clean end says itself."""
    return Message(topics.state(device), encode(State(session, online=False)), qos=1, retain=True)


class Voice:
    """Publishes for one device.

    Args:
        config: who speaks.
        link: to the broker.
        session: number of this start.
    """

    def __init__(self, config: DeviceConfig, link: Link, session: int) -> None:
        self._config = config
        self._link = link
        self._session = session

    def birth(self, active: Iterable[Manifest]) -> None:
        """Say that the device is there, and what it holds."""
        models = tuple(Installed(m.model, m.version, m.variant) for m in active)
        config = self._config
        software = f"edgefl-{__version__}"
        state = State(self._session, online=True, profile=config.profile, engine=config.engine, software=software, models=models)
        self._say(topics.state(config.id), encode(state), retain=True)

    def report(self, report: Report) -> None:
        """Tell progress or an error."""
        self._say(topics.report(self._config.id), encode(report))

    def update(self, model: str, entry: OutboxEntry, data: bytes) -> None:
        """Send an encoded update in as many parts as it needs."""
        cuts = range(0, len(data), PART_SIZE)
        for part, start in enumerate(cuts):
            message = UpdatePart(
                model,
                entry.version,
                entry.variant,
                entry.round,
                entry.samples,
                entry.loss_before,
                entry.loss_after,
                entry.sha256,
                part,
                len(cuts),
                data[start : start + PART_SIZE],
            )
            self._say(topics.update(self._config.id), encode(message))

    def _say(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        try:
            self._link.publish(topic, payload, retain=retain)
        except LinkError as error:
            log.warning("cannot publish on %s: %s", topic, error)
