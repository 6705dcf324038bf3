"""The connections that a `PahoLink` has one after the other: whether there is one, why not, and when the next is tried.

Model: *down* (no client; the next attempt is due at a time) -> *opening* (CONNECT sent, waiting for the answer) -> *up*.
Every connection is a fresh `LeashedClient`. What it moves is the link's business; how long it lives is decided here.

Rules:

* Attempts are spaced by `Backoff`: full jitter, 0.5 to 60 s. Only a connection that lasted resets it.
* An attempt blocks for the handshakes: milliseconds normally, up to 5 s each for TCP and TLS if the host is silent.
* A reason for being offline is news once, not at every attempt.
"""

import random
import select
import time
from collections.abc import Sequence

from edgefl.errors import LinkError
from edgefl.link.address import BrokerAddress, Trouble, explain, refusal, tls_context
from edgefl.link.backoff import Backoff
from edgefl.link.contract import Message
from edgefl.link.leash import CONNECT_TIMEOUT, LeashedClient

SLICE = 1.0
"""Longest wait in one piece, so that pings and deadlines are looked after."""


class Connection:
    """At most one connection to the broker at a time, owned by the thread of its link.

    Attributes:
        address: of the broker.
        client: moves the bytes of the present connection; None while there is none.
        up: whether the broker has accepted it.
        trouble: why there is none; empty while it is up.
    """

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        *,
        will: Message | None,
        clean_session: bool,
        keepalive: int,
        rng: random.Random,
    ) -> None:
        """Prepare; the first attempt is due at once. The arguments are those of `PahoLink`."""
        self.address = address
        self.client: LeashedClient | None = None
        self.up = False
        self.trouble = Trouble("not yet tried")
        self._client_id = client_id
        self._will = will
        self._clean_session = clean_session
        self._keepalive = keepalive
        self._backoff = Backoff(rng)
        self._since = 0.0  # when the present state began

    def due(self) -> bool:
        """Whether it is time for an attempt."""
        return self.client is None and time.monotonic() >= self._backoff.due

    def hurry(self) -> None:
        """Let the next attempt be due at once."""
        self._backoff.due = 0.0

    def open(self) -> Trouble | None:
        """Begin an attempt; why it failed already, if it did: then `lost` is to follow."""
        self._since = time.monotonic()
        try:
            context = tls_context(self.address)
            client = LeashedClient(self._client_id, context, clean_session=self._clean_session, will=self._will)
            client.open(self.address.host, self.address.port, self._keepalive)
        except LinkError as error:
            return Trouble(f"{error.problem}: {error.found}", error.remedy)
        except (OSError, ValueError) as error:
            return explain(error)
        self.client = client
        return None

    def unanswered(self) -> bool:
        """Whether the broker has left an attempt without an answer for too long."""
        return self.client is not None and not self.up and time.monotonic() - self._since > CONNECT_TIMEOUT

    def begin(self) -> None:
        """The broker has accepted the connection."""
        self.up = True
        self._since = time.monotonic()
        self.trouble = Trouble("")

    def ending(self) -> Trouble | None:
        """Why the connection has ended; None while its socket is open, or without one."""
        client = self.client
        if client is None or client.socket() is not None:
            return None
        if client.refused:
            return refusal(client.refused)
        if client.failure is not None:
            return explain(client.failure, accepted=self.up)
        if self.up:
            return Trouble("the broker closed the connection, or stopped answering", "Check the network and the broker's log")
        return explain(ConnectionResetError())

    def lost(self, trouble: Trouble) -> bool:
        """Give the connection up, or the attempt, without a good-bye; whether the reason is news."""
        now = time.monotonic()
        news = self.up or trouble.reason != self.trouble.reason
        if self.client is not None:
            self.client.abandon()
        self._backoff.failed(now, lasted=now - self._since if self.up else 0.0)
        self.client, self.up, self.trouble = None, False, trouble
        return news

    def part(self, deadline: float) -> None:
        """End it for good, with a good-bye if the broker has accepted it; waits until it is sent, at most to the deadline."""
        client, self.client, was_up, self.up = self.client, None, self.up, False
        if client is None:
            return
        if was_up:
            client.disconnect()
            while client.socket() is not None and time.monotonic() < deadline:
                client.work(readable=False)
                time.sleep(0.005)
        client.abandon()

    def wait(self, timeout: float, wake: Sequence[int]) -> bool:
        """Wait for the socket, a wake descriptor or the next attempt, and let the client work once.

        Returns:
            Whether a wake descriptor is readable.
        """
        client = self.client
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

    def subscribe(self, filters: list[tuple[str, int]]) -> int | None:
        """Ask for filters with their QoS; the request's identifier, or None when the connection is gone."""
        if self.client is None or self.client.socket() is None:
            return None
        return self.client.subscribe(filters)[1]

    def publish(self, message: Message) -> int | None:
        """Hand a message to the network; its identifier, or None when the connection is gone."""
        if self.client is None or self.client.socket() is None:
            return None
        info = self.client.publish(message.topic, message.payload, message.qos, message.retain)
        return info.mid if info.rc == 0 else None
