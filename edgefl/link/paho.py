"""The link to a real broker: paho-mqtt, driven by hand by the one thread that calls `poll`.

Model: *down* (no connection; the next attempt is due at a time) -> *opening* (CONNECT sent, waiting for the answer) -> *up*.
Every connection is a fresh `LeashedClient`; what must outlive it (queue, subscriptions, counters) is here.

Rules:

* Attempts are spaced by `Backoff`: full jitter, 0.5 to 60 s. Only a connection that lasted resets it.
* An attempt blocks `poll` for the handshakes: milliseconds normally, up to 5 s each for TCP and TLS if the host is silent.
* Pings are sent from inside `poll`: call it at least every `keepalive / 2` seconds.
* A reason for being offline is told once, not at every attempt.
"""

import contextlib
import random
import select
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from edgefl.errors import LinkError
from edgefl.link.address import BrokerAddress, Trouble, explain, refusal, tls_context
from edgefl.link.backoff import Backoff
from edgefl.link.contract import (
    DEFAULT_BUDGET,
    Connected,
    Disconnected,
    Event,
    Message,
    Traffic,
    check_publish,
)
from edgefl.link.leash import CONNECT_TIMEOUT, LeashedClient
from edgefl.link.outgoing import Outgoing
from edgefl.link.subscriptions import Subscriptions

SLICE = 1.0
"""Longest wait in one piece, so that pings and deadlines are looked after."""
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
        self._address = address
        self._client_id = client_id
        self._will = will
        self._clean_session = clean_session
        self._keepalive = keepalive
        self._backoff = Backoff(rng or random.Random())  # noqa: S311 - jitter is no secret
        self._outgoing = Outgoing(window, budget)
        self._subscriptions = Subscriptions()
        self._events: deque[Event] = deque()
        self._traffic = Traffic()
        self._client: LeashedClient | None = None
        self._up = False
        self._since = 0.0  # when the present state began
        self._trouble = Trouble("not yet tried")
        self._closed = False

    def connect(self, timeout: float = 10.0) -> None:
        """Make the first connection and wait for the broker's answer; for commands that a person waits for.

        The `Connected` event, and what arrives meanwhile, come from the next `poll`. After a failure the link may be polled on.

        Raises:
            LinkError: broker absent, certificate or identity refused, wrong CA, wrong host name, no answer in time.
        """
        deadline = time.monotonic() + timeout
        if self._client is None:
            self._open()
        while self._client is not None and not self._up and time.monotonic() < deadline:
            self._turn(max(0.0, deadline - time.monotonic()), ())
            self._settle()
        if not self._up:
            if self._client is not None:
                self._lost(SILENT)
            raise self._trouble.error(self._address)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Queue a message; see `Link.publish`."""
        check_publish(topic, payload, qos)
        if qos > 0 or self._up:
            self._outgoing.put(Message(topic, bytes(payload), qos, retain))

    def subscribe(self, topic_filter: str, qos: int = 1) -> None:
        """Receive what matches; see `Link.subscribe`."""
        self._subscriptions.want(topic_filter, qos)
        if self._up:
            self._subscriptions.ask(self._ask, topic_filter)

    def unsubscribe(self, topic_filter: str) -> None:
        """No longer receive it; see `Link.unsubscribe`."""
        if self._subscriptions.forget(topic_filter) and self._up and self._client:
            self._client.unsubscribe(topic_filter)

    def poll(self, timeout: float, wake: Sequence[int] = ()) -> list[Event]:
        """Let time pass; see `Link.poll`."""
        deadline = time.monotonic() + timeout
        while not self._closed:
            self._advance()
            left = 0.0 if self._events else max(0.0, deadline - time.monotonic())
            woken = self._turn(left, wake)
            self._advance()
            if self._events or woken or left <= 0.0:
                break
        events = list(self._events)
        self._events.clear()
        return events

    def reconnect(self) -> None:
        """Connect anew, with the files as they are now; see `Link.reconnect`."""
        self._settle()  # what has arrived is acknowledged, and would not come again
        if self._client is None:
            return
        if self._up:
            self._client.disconnect()
            self._client.work(readable=False)
        self._lost(RENEWING)
        self._backoff.due = 0.0

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection."""
        return self._up

    @property
    def outgoing(self) -> int:
        """Payload bytes that are queued or not yet acknowledged."""
        return self._outgoing.size

    @property
    def traffic(self) -> Traffic:
        """Counters."""
        return self._traffic

    def restart(self) -> None:
        """Make a new connection; see `Link.restart`."""
        if self._up:
            self._lost(Trouble("given up to leave behind what nobody here needs"))

    def close(self, timeout: float = 5.0, *, last: Message | None = None) -> None:
        """Send what is queued and disconnect cleanly; see `Link.close`."""
        deadline = time.monotonic() + timeout
        if last is not None and self._up:
            with contextlib.suppress(LinkError):  # no room left: given up like the rest
                self._outgoing.put(last)
        while self._up and not self._outgoing.empty and time.monotonic() < deadline:
            self._advance()
            self._turn(min(0.1, max(0.0, deadline - time.monotonic())), ())
            self._settle()
        self._closed = True
        client, self._client, was_up, self._up = self._client, None, self._up, False
        if client is None:
            return
        if was_up:
            client.disconnect()
            while client.socket() is not None and time.monotonic() < deadline:
                client.work(readable=False)
                time.sleep(0.005)
        client.abandon()

    def _advance(self) -> None:
        """What needs no waiting: take note of what the network did, connect if it is time, hand over messages."""
        self._settle()
        now = time.monotonic()
        if self._client is None and now >= self._backoff.due and not self._closed:
            self._open()
        elif self._client is not None and not self._up and now - self._since > CONNECT_TIMEOUT:
            self._lost(SILENT)
        while self._up and self._outgoing.hand_over(self._send):
            self._settle()  # QoS 0 messages are often done at once, and make room for the next

    def _open(self) -> None:
        self._since = time.monotonic()
        self._traffic = replace(self._traffic, attempts=self._traffic.attempts + 1)
        try:
            context = tls_context(self._address)
            client = LeashedClient(self._client_id, context, clean_session=self._clean_session, will=self._will)
            client.open(self._address.host, self._address.port, self._keepalive)
        except LinkError as error:
            self._lost(Trouble(f"{error.problem}: {error.found}", error.remedy))
        except (OSError, ValueError) as error:
            self._lost(explain(error))
        else:
            self._client = client

    def _turn(self, timeout: float, wake: Sequence[int]) -> bool:
        """Wait for the socket or a wake descriptor once, and let the client work; whether a wake descriptor is readable."""
        client = self._client
        sock = client.socket() if client else None
        waiter = select.poll()  # unlike select() not limited to descriptors below 1024
        for descriptor in wake:
            waiter.register(descriptor, select.POLLIN)
        if client is None or sock is None:
            timeout = min(timeout, max(0.0, self._backoff.due - time.monotonic()))
            ready = waiter.poll(1000.0 * min(timeout, SLICE))
            return bool(ready)
        number, pending = sock.fileno(), client.pending()
        waiter.register(number, select.POLLIN | (select.POLLOUT if client.want_write() else 0))
        ready = waiter.poll(0.0 if pending else 1000.0 * min(timeout, SLICE))
        client.work(readable=pending or any(descriptor == number for descriptor, _ in ready))
        return any(descriptor != number for descriptor, _ in ready)

    def _settle(self) -> None:
        """Take over what the client wrote down."""
        client = self._client
        if client is None:
            return
        if client.accepted and not self._up:
            self._begin(client)
        for mid in client.done:
            self._outgoing.acknowledge(mid)
        client.done.clear()
        for mid, position in client.denied:
            self._events.extend(self._subscriptions.denied(mid, position))
        client.denied.clear()
        size = sum(len(message.payload) for message in client.arrived)
        self._traffic = replace(
            self._traffic,
            received=self._traffic.received + len(client.arrived),
            received_bytes=self._traffic.received_bytes + size,
            dropped=self._traffic.dropped + client.dropped,
        )
        self._events.extend(client.arrived)
        client.arrived.clear()
        client.dropped = 0
        if client.socket() is None:
            self._lost(self._why(client))

    def _begin(self, client: LeashedClient) -> None:
        self._up = True
        self._since = time.monotonic()
        self._trouble = Trouble("")
        self._events.append(Connected(client.session_present))
        self._subscriptions.ask(self._ask)

    def _why(self, client: LeashedClient) -> Trouble:
        if client.refused:
            return refusal(client.refused)
        if client.failure is not None:
            return explain(client.failure, accepted=self._up)
        if self._up:
            return Trouble("the broker closed the connection, or stopped answering", "Check the network and the broker's log")
        return explain(ConnectionResetError())

    def _lost(self, trouble: Trouble) -> None:
        now = time.monotonic()
        if self._client is not None:
            self._client.abandon()
        if self._up or trouble.reason != self._trouble.reason:
            self._events.append(Disconnected(trouble.reason))
        self._backoff.failed(now, lasted=now - self._since if self._up else 0.0)
        self._client, self._up, self._trouble = None, False, trouble
        self._subscriptions.lost()
        self._outgoing.take_back()

    def _ask(self, filters: list[tuple[str, int]]) -> int | None:
        if self._client is None or self._client.socket() is None:
            return None
        return self._client.subscribe(filters)[1]

    def _send(self, message: Message) -> int | None:
        if self._client is None or self._client.socket() is None:
            return None
        info = self._client.publish(message.topic, message.payload, message.qos, message.retain)
        if info.rc != 0:
            return None
        self._traffic = replace(
            self._traffic, sent=self._traffic.sent + 1, sent_bytes=self._traffic.sent_bytes + len(message.payload)
        )
        return info.mid
