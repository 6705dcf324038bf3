"""A link to a broker in memory, with the same promises as `PahoLink`: for tests and simulation, without a socket or a clock.

Model: a `MemoryLink` holds what a real link would hold across connections. What it sends is delivered into its receivers' inboxes
(`edgefl.link.memory_broker`) when it polls; `poll` returns at once.
"""

import contextlib
from collections.abc import Sequence

from edgefl.errors import LinkError
from edgefl.link.contract import (
    DEFAULT_BUDGET,
    Connected,
    Disconnected,
    Event,
    Message,
    Traffic,
    check_filter,
    check_publish,
)
from edgefl.link.memory_broker import MemoryBroker
from edgefl.link.meter import Meter
from edgefl.link.outgoing import Outgoing


class MemoryLink:
    """A `Link` to a `MemoryBroker`."""

    def __init__(
        self,
        broker: MemoryBroker,
        client_id: str,
        *,
        will: Message | None = None,
        clean_session: bool = True,
        budget: int = DEFAULT_BUDGET,
    ) -> None:
        """Prepare; the first `poll` connects. `will`, `clean_session` and `budget` are those of `PahoLink`."""
        self._broker = broker
        self._client_id = client_id
        self._will = will
        self._clean_session = clean_session
        self._outgoing = Outgoing(window=1 << 30, budget=budget)
        self._filters: dict[str, int] = {}
        self._events: list[Event] = []
        self._meter = Meter()
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
            self._meter.received(arrived)
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
        return self._meter.traffic

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
            self._meter.sent(message)
            handed.append(len(handed))
            return handed[-1]

        self._outgoing.hand_over(send)
        for identifier in handed:
            self._outgoing.acknowledge(identifier)
