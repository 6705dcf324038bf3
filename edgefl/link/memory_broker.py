"""A broker in memory, for tests and simulation: sessions, retained messages and counters, without a socket or a clock.

Model: a message that arrives is put at once into the inbox of every session that wants it, connected or not; links
(`edgefl.link.memory`) collect theirs.

Faults are injected between broker and receiver: with given probabilities a delivery is lost, doubled, or overtakes others. Real
MQTT loses QoS 1 messages only with a session or a full queue; here any may be lost, because machines must survive that too.
The same seed gives the same faults.
"""

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

from edgefl.link.contract import Arrived, Message, matches


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities in [0, 1] that one delivery is lost, doubled, or overtakes what is waiting."""

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0


class Attached(Protocol):
    """A link, as the broker sees it."""

    def lose(self, reason: str) -> None:
        """Take note that the connection is gone."""
        ...

    def drop(self) -> None:
        """End the connection, as a network would, and say so to the broker."""
        ...


@dataclass(slots=True)
class _Session:
    """What the broker knows of a client."""

    filters: dict[str, int] = field(default_factory=dict)
    inbox: list[Arrived] = field(default_factory=list)
    clean: bool = True
    will: Message | None = None
    link: Attached | None = None  # while connected


class MemoryBroker:
    """An MQTT broker in memory.

    Attributes:
        faults: what goes wrong with deliveries; may be changed at any time.
        running: False while stopped.
        retained: message by topic.
        published, published_bytes: messages and payload bytes that arrived at the broker, by topic.
        delivered, delivered_bytes: the same for what went out to receivers, after faults.
    """

    def __init__(self, rng: random.Random | None = None, faults: Faults | None = None) -> None:
        """An empty, running broker; `rng` draws the faults."""
        self.faults = faults or Faults()
        self.running = True
        self.retained: dict[str, bytes] = {}
        self.published: Counter[str] = Counter()
        self.published_bytes: Counter[str] = Counter()
        self.delivered: Counter[str] = Counter()
        self.delivered_bytes: Counter[str] = Counter()
        self._rng = rng or random.Random(0)  # noqa: S311 - simulation
        self._sessions: dict[str, _Session] = {}

    def stop(self, *, forget: bool = False) -> None:
        """Go away: all connections are lost; with `forget`, so are sessions and retained messages (no persistence)."""
        self.running = False
        for session in self._sessions.values():
            if session.link:
                session.link.lose("connection refused")
                session.link = None
        self._sessions = {} if forget else {name: session for name, session in self._sessions.items() if not session.clean}
        if forget:
            self.retained.clear()

    def start(self) -> None:
        """Come back; links reconnect at their next `poll`."""
        self.running = True

    def attach(self, link: Attached, client_id: str, *, clean: bool, will: Message | None) -> bool:
        """Accept a connection; whether an old session was still there. An older connection of the same client is dropped."""
        old = self._sessions.get(client_id)
        if old and old.link:
            old.link.drop()
            old = self._sessions.get(client_id)
        present = old is not None and not clean
        session = old if old is not None and not clean else _Session()
        session.link, session.clean, session.will = link, clean, will
        self._sessions[client_id] = session
        return present

    def detach(self, client_id: str, *, politely: bool) -> None:
        """End a connection; without politeness the will is published."""
        session = self._sessions.get(client_id)
        if session is None:
            return
        session.link = None
        if session.clean:
            del self._sessions[client_id]
        if session.will and not politely:
            self.accept(session.will)

    def subscribe(self, client_id: str, topic_filter: str, qos: int) -> None:
        """Remember a subscription and deliver what is retained for it."""
        session = self._sessions[client_id]
        session.filters[topic_filter] = qos
        for topic, payload in sorted(self.retained.items()):
            if matches(topic_filter, topic):
                self._deliver(session, Arrived(topic, payload, retained=True))

    def unsubscribe(self, client_id: str, topic_filter: str) -> None:
        """Forget a subscription."""
        self._sessions[client_id].filters.pop(topic_filter, None)

    def accept(self, message: Message) -> None:
        """A message arrives at the broker: keep it if it is to be retained, and deliver it once to each receiver."""
        self.published[message.topic] += 1
        self.published_bytes[message.topic] += len(message.payload)
        if message.retain and message.payload:
            self.retained[message.topic] = message.payload
        elif message.retain:
            self.retained.pop(message.topic, None)
        for session in self._sessions.values():
            granted = [qos for topic_filter, qos in session.filters.items() if matches(topic_filter, message.topic)]
            if granted and (session.link or min(message.qos, max(granted)) > 0):
                self._deliver(session, Arrived(message.topic, message.payload, retained=False))

    def collect(self, client_id: str) -> list[Arrived]:
        """What waits for a client."""
        session = self._sessions[client_id]
        inbox, session.inbox = session.inbox, []
        return inbox

    def _deliver(self, session: _Session, message: Arrived) -> None:
        if self._rng.random() < self.faults.loss:
            return
        for _ in range(2 if self._rng.random() < self.faults.duplicate else 1):
            self.delivered[message.topic] += 1
            self.delivered_bytes[message.topic] += len(message.payload)
            overtakes = self._rng.random() < self.faults.reorder
            session.inbox.insert(self._rng.randint(0, len(session.inbox)) if overtakes else len(session.inbox), message)
