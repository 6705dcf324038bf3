"""What leaves the server: announcements, answers, blocks. Everything is counted for the model that it concerns.

Rules: an announcement or an answer that the link has no room for is a complaint, and not said; whoever wants it said says it
again. A block waits until there is room.
"""

from collections.abc import Callable

from edgefl.errors import LinkError
from edgefl.link.contract import Link
from edgefl.server.traffic import TrafficBook

QUEUE_LIMIT = 2 * 1024 * 1024
"""Payload bytes that may wait in the link before block delivery pauses; round orders and receipts still find room."""


class Speech:
    """Says things on the server's link.

    Args:
        link: to the broker.
        traffic: counts the bytes.
        complain: told what cannot be said.

    Attributes:
        online: whether the broker has said that the connection stands; nothing is announced before.
    """

    def __init__(self, link: Link, traffic: TrafficBook, complain: Callable[[str], None]) -> None:
        self._link = link
        self._traffic = traffic
        self._complain = complain
        self.online = False

    def announce(self, model: str, topic: str, payload: bytes) -> bool:
        """Publish retained; whether the link has taken it."""
        return self.online and self._send(model, topic, payload, retain=True)

    def answer(self, model: str, topic: str, payload: bytes) -> None:
        """Publish to whoever listens now, or has a session."""
        self._send(model, topic, payload, retain=False)

    def block(self, model: str, topic: str, payload: bytes) -> None:
        """Publish a block, for which there was room. Raises LinkError when there is none after all."""
        self._link.publish(topic, payload, qos=0)
        self._traffic.down(model, len(payload))

    def room(self) -> int:
        """Bytes of blocks that the link can take now."""
        return max(0, QUEUE_LIMIT - self._link.outgoing) if self._link.connected else 0

    def _send(self, model: str, topic: str, payload: bytes, *, retain: bool) -> bool:
        try:
            self._link.publish(topic, payload, retain=retain)
        except LinkError as error:
            self._complain(f"cannot publish on {topic}: {error}")
            return False
        self._traffic.down(model, len(payload))
        return True
