"""A broker in memory whose links keep the same promises as `PahoLink`: for tests and simulation, without a socket or a clock.

Model: a broker holds sessions, retained messages and counters; a `MemoryLink` holds what a real link would hold across
connections. A message is delivered into its receivers' inboxes when the sender polls; `poll` returns at once.

Faults are injected between broker and receiver: with given probabilities a delivery is lost, doubled, or overtakes others. Real
MQTT loses QoS 1 messages only with a session or a full queue; here any may be lost, because machines must survive that too.
The same seed gives the same faults.
"""

import contextlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from edgefl.errors import LinkError
from edgefl.link.contract import (
    DEFAULT_BUDGET,
    Arrived,
    Connected,
    Disconnected,
    Event,
    Message,
    Traffic,
    check_filter,
    check_publish,
    matches,
)
from edgefl.link.outgoing import Outgoing


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities in [0, 1] that one delivery is lost, doubled, or overtakes what is waiting."""

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0


@dataclass(slots=True)
class _Session:
    """What the broker knows of a client."""

    filters: dict[str, int] = field(default_factory=dict)
    inbox: list[Arrived] = field(default_factory=list)
    clean: bool = True
    will: Message | None = None
    link: "MemoryLink | None" = None  # while connected


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

    def link(
        self, client_id: str, *, will: Message | None = None, clean_session: bool = True, budget: int = DEFAULT_BUDGET
    ) -> "MemoryLink":
        """A link for this client; it connects at its first `poll`."""
        return MemoryLink(self, client_id, will=will, clean_session=clean_session, budget=budget)

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

    def attach(self, link: "MemoryLink", client_id: str, *, clean: bool, will: Message | None) -> bool:
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


class MemoryLink:
    """A `Link` to a `MemoryBroker`."""

    def __init__(self, broker: MemoryBroker, client_id: str, *, will: Message | None, clean_session: bool, budget: int) -> None:
        """Prepare; the first `poll` connects."""
        self._broker = broker
        self._client_id = client_id
        self._will = will
        self._clean_session = clean_session
        self._outgoing = Outgoing(window=1 << 30, budget=budget)
        self._filters: dict[str, int] = {}
        self._events: list[Event] = []
        self._traffic = Traffic()
        self._up = False
        self._reason = ""
        self._closed = False

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Queue a message; see `Link.publish`."""
        check_publish(topic, payload, qos)
        if qos > 0 or self._up:
            self._outgoing.put(Message(topic, bytes(payload), qos, retain))

    def subscribe(self, topic_filter: str, qos: int = 1) -> None:
        """Receive what matches; see `Link.subscribe`."""
        check_filter(topic_filter)
        self._filters[topic_filter] = qos
        if self._up:
            self._broker.subscribe(self._client_id, topic_filter, qos)

    def unsubscribe(self, topic_filter: str) -> None:
        """No longer receive it; see `Link.unsubscribe`."""
        if self._filters.pop(topic_filter, None) is not None and self._up:
            self._broker.unsubscribe(self._client_id, topic_filter)

    def poll(self, timeout: float, wake: Sequence[int] = ()) -> list[Event]:  # noqa: ARG002 - no time passes in memory
        """Connect, send and receive what there is; returns at once."""
        if not self._closed and not self._up and not self._events:
            self._connect()
        if self._up:
            self._flush()
            arrived = self._broker.collect(self._client_id)
            size = sum(len(message.payload) for message in arrived)
            self._traffic = replace(
                self._traffic,
                received=self._traffic.received + len(arrived),
                received_bytes=self._traffic.received_bytes + size,
            )
            self._events.extend(arrived)
        events, self._events = self._events, []
        return events

    def reconnect(self) -> None:
        """Say good-bye and connect anew at the next poll; see `Link.reconnect`."""
        if self._up:
            self._flush()
            self._broker.detach(self._client_id, politely=True)
            self.lose("connecting anew")

    @property
    def connected(self) -> bool:
        """Whether the connection stands."""
        return self._up

    @property
    def outgoing(self) -> int:
        """Payload bytes that are queued."""
        return self._outgoing.size

    @property
    def traffic(self) -> Traffic:
        """Counters."""
        return self._traffic

    def close(self, timeout: float = 5.0, *, last: Message | None = None) -> None:  # noqa: ARG002 - no time passes in memory
        """Send what is queued and disconnect cleanly; see `Link.close`."""
        if self._up:
            if last is not None:
                with contextlib.suppress(LinkError):  # no room left: given up like the rest
                    self._outgoing.put(last)
            self._flush()
            self._up = False
            self._broker.detach(self._client_id, politely=True)
        self._closed = True

    def restart(self) -> None:
        """Make a new connection; see `Link.restart`."""
        self.drop()

    def drop(self) -> None:
        """Cut the connection: the broker publishes the will; the next poll says so and the one after reconnects."""
        if self._up:
            self.lose("connection lost")
            self._broker.detach(self._client_id, politely=False)

    def lose(self, reason: str) -> None:
        """Take note that the connection is gone."""
        self._up = False
        self._outgoing.take_back()
        self._reason = reason
        self._events.append(Disconnected(reason))

    def _connect(self) -> None:
        if not self._broker.running:
            if self._reason != "connection refused":
                self.lose("connection refused")
            return
        present = self._broker.attach(self, self._client_id, clean=self._clean_session, will=self._will)
        self._up, self._reason = True, ""
        self._events.append(Connected(present))
        for topic_filter, qos in self._filters.items():
            self._broker.subscribe(self._client_id, topic_filter, qos)

    def _flush(self) -> None:
        """Everything that waits arrives at the broker at once, and is thereby acknowledged."""
        handed: list[int] = []

        def send(message: Message) -> int:
            self._broker.accept(message)
            self._traffic = replace(
                self._traffic, sent=self._traffic.sent + 1, sent_bytes=self._traffic.sent_bytes + len(message.payload)
            )
            handed.append(len(handed))
            return handed[-1]

        self._outgoing.hand_over(send)
        for identifier in handed:
            self._outgoing.acknowledge(identifier)
