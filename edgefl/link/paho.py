"""The link to a real broker: paho-mqtt, driven by hand by the one thread that calls `poll`.

Model: connections come and go (`edgefl.link.connection`); what must outlive them is here: the queue, the subscriptions, the
counters, and the events that the owner has not taken yet. `_settle` carries over what the present connection has done.

Rules:

* An attempt to connect blocks `poll` for the handshakes: milliseconds normally, up to 5 s each for TCP and TLS.
* Pings are sent from inside `poll`: call it at least every `keepalive / 2` seconds.
"""

import contextlib
import random
import time
from collections import deque
from collections.abc import Sequence

from edgefl.errors import LinkError
from edgefl.link.address import BrokerAddress, Trouble
from edgefl.link.connection import Connection
from edgefl.link.contract import DEFAULT_BUDGET, Connected, Disconnected, Event, Message, Traffic, check_publish
from edgefl.link.meter import Meter
from edgefl.link.outgoing import Outgoing
from edgefl.link.subscriptions import Subscriptions

RENEWING = Trouble("connecting anew")
SILENT = Trouble("no answer to our CONNECT", "Check that the port is the broker's TLS listener")


class PahoLink:
    """A `Link` over TLS to a broker that speaks MQTT 3.1.1."""

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        *,
        will: Message | None = None,
        clean_session: bool = True,
        keepalive: int = 30,
        window: int = 20,
        budget: int = DEFAULT_BUDGET,
        rng: random.Random | None = None,
    ) -> None:
        """Prepare; the first `poll` or `connect` connects.

        Args:
            address: broker, CA and our certificate.
            client_id: normally the identity in the certificate.
            will: published by the broker when the connection dies.
            clean_session: False lets the broker keep subscriptions and QoS 1 messages while we are away.
            keepalive: seconds; a dead connection is noticed after at most twice as long.
            window: messages handed to the network at a time.
            budget: payload bytes that may wait.
            rng: of the jitter; seeded from the system if not given.
        """
        self._connection = Connection(
            address,
            client_id,
            will=will,
            clean_session=clean_session,
            keepalive=keepalive,
            rng=rng or random.Random(),  # noqa: S311 - jitter is no secret
        )
        self._outgoing = Outgoing(window, budget)
        self._subscriptions = Subscriptions()
        self._meter = Meter()
        self._events: deque[Event] = deque()
        self._closed = False

    def connect(self, timeout: float = 10.0) -> None:
        """Make the first connection and wait for the broker's answer; for commands that a person waits for.

        The `Connected` event, and what arrives meanwhile, come from the next `poll`. After a failure the link may be polled on.

        Raises:
            LinkError: broker absent, certificate or identity refused, wrong CA, wrong host name, no answer in time.
        """
        connection, deadline = self._connection, time.monotonic() + timeout
        if connection.client is None:
            self._open()
        while connection.client is not None and not connection.up and time.monotonic() < deadline:
            connection.wait(max(0.0, deadline - time.monotonic()), ())
            self._settle()
        if not connection.up:
            if connection.client is not None:
                self._lost(SILENT)
            raise connection.trouble.error(connection.address)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Queue a message; see `Link.publish`."""
        check_publish(topic, payload, qos)
        if qos > 0 or self._connection.up:
            self._outgoing.put(Message(topic, bytes(payload), qos, retain))

    def subscribe(self, topic_filter: str, qos: int = 1) -> None:
        """Receive what matches; see `Link.subscribe`."""
        self._subscriptions.want(topic_filter, qos)
        if self._connection.up:
            self._subscriptions.ask(self._connection.subscribe, topic_filter)

    def unsubscribe(self, topic_filter: str) -> None:
        """No longer receive it; see `Link.unsubscribe`."""
        if self._subscriptions.forget(topic_filter) and self._connection.up and self._connection.client:
            self._connection.client.unsubscribe(topic_filter)

    def poll(self, timeout: float, wake: Sequence[int] = ()) -> list[Event]:
        """Let time pass; see `Link.poll`."""
        deadline = time.monotonic() + timeout
        while not self._closed:
            self._advance()
            left = 0.0 if self._events else max(0.0, deadline - time.monotonic())
            woken = self._connection.wait(left, wake)
            self._advance()
            if self._events or woken or left <= 0.0:
                break
        events = list(self._events)
        self._events.clear()
        return events

    def reconnect(self) -> None:
        """Connect anew, with the files as they are now; see `Link.reconnect`."""
        self._settle()  # what has arrived is acknowledged, and would not come again
        client = self._connection.client
        if client is None:
            return
        if self._connection.up:
            client.disconnect()
            client.work(readable=False)
        self._lost(RENEWING)
        self._connection.hurry()

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection."""
        return self._connection.up

    @property
    def outgoing(self) -> int:
        """Payload bytes that are queued or not yet acknowledged."""
        return self._outgoing.size

    @property
    def traffic(self) -> Traffic:
        """Counters."""
        return self._meter.traffic

    def restart(self) -> None:
        """Make a new connection; see `Link.restart`."""
        if self._connection.up:
            self._lost(Trouble("given up to leave behind what nobody here needs"))

    def close(self, timeout: float = 5.0, *, last: Message | None = None) -> None:
        """Send what is queued and disconnect cleanly; see `Link.close`."""
        deadline = time.monotonic() + timeout
        if last is not None and self._connection.up:
            with contextlib.suppress(LinkError):  # no room left: given up like the rest
                self._outgoing.put(last)
        while self._connection.up and not self._outgoing.empty and time.monotonic() < deadline:
            self._advance()
            self._connection.wait(min(0.1, max(0.0, deadline - time.monotonic())), ())
            self._settle()
        self._closed = True
        self._connection.part(deadline)

    def _advance(self) -> None:
        """What needs no waiting: take note of what the network did, connect if it is time, hand over messages."""
        self._settle()
        if self._connection.due() and not self._closed:
            self._open()
        elif self._connection.unanswered():
            self._lost(SILENT)
        while self._connection.up and self._outgoing.hand_over(self._send):
            self._settle()  # QoS 0 messages are often done at once, and make room for the next

    def _open(self) -> None:
        self._meter.attempted()
        trouble = self._connection.open()
        if trouble is not None:
            self._lost(trouble)

    def _settle(self) -> None:
        """Take over what the client wrote down."""
        client = self._connection.client
        if client is None:
            return
        if client.accepted and not self._connection.up:
            self._connection.begin()
            self._events.append(Connected(client.session_present))
            self._subscriptions.ask(self._connection.subscribe)
        for mid in client.done:
            self._outgoing.acknowledge(mid)
        client.done.clear()
        for mid, position in client.denied:
            self._events.extend(self._subscriptions.denied(mid, position))
        client.denied.clear()
        self._meter.received(client.arrived, client.dropped)
        self._events.extend(client.arrived)
        client.arrived.clear()
        client.dropped = 0
        ending = self._connection.ending()
        if ending is not None:
            self._lost(ending)

    def _lost(self, trouble: Trouble) -> None:
        """Give the connection up: what was handed over waits again, and what was asked for will be asked again."""
        if self._connection.lost(trouble):
            self._events.append(Disconnected(trouble.reason))
        self._subscriptions.lost()
        self._outgoing.take_back()

    def _send(self, message: Message) -> int | None:
        identifier = self._connection.publish(message)
        if identifier is not None:
            self._meter.sent(message)
        return identifier
