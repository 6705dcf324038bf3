"""One connection made to find out what a broker does: connect, ask, listen, and leave politely or not.

Model: a `Probe` connects once and never again. What the broker answers is noted, not judged: a refusal is a result here, where it
is an error elsewhere. Every wait has an end.
"""

import select
import ssl
import time
from collections.abc import Callable
from types import TracebackType

from edgefl.errors import LinkError
from edgefl.link.address import SILENT_REFUSAL, BrokerAddress, explain, refusal, tls_context
from edgefl.link.contract import Arrived, Message
from edgefl.link.leash import LeashedClient

ANSWER_SECONDS = 3.0
KEEPALIVE = 30


class Probe:
    """A connection under observation; use it as a context manager, which disconnects it.

    Attributes:
        accepted: whether the broker has accepted it.
        reason: why not, in words; empty when it has.
        heard: every message that has arrived, the oldest first.
        oversized: how many have arrived that are too large for the protocol, and were thrown away.
    """

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        *,
        anonymous: bool = False,
        will: Message | None = None,
        clean_session: bool = True,
        seconds: float = ANSWER_SECONDS,
    ) -> None:
        """Connect and wait for the broker's answer.

        Args:
            address: broker, CA, and the certificate to show.
            client_id: to ask for.
            anonymous: show no certificate.
            will: to leave with the broker.
            clean_session: False asks for a session that outlives the connection.
            seconds: how long to wait for the answer.

        Raises:
            LinkError: the files of `address` cannot be used.
        """
        self.heard: list[Arrived] = []
        self.oversized = 0
        self.accepted = False
        self.reason = ""
        self._acknowledged: set[int] = set()
        context = _anonymous_context(address) if anonymous else tls_context(address)
        self._client = LeashedClient(client_id, context, clean_session=clean_session, will=will)
        try:
            self._client.open(address.host, address.port, KEEPALIVE)
        except (OSError, ValueError) as error:
            self.reason = explain(error).reason
            return
        self.wait(seconds, lambda: self._client.accepted or bool(self._client.refused))
        self.accepted = self._client.accepted and self.alive
        if not self.accepted:
            self.reason = self._why()

    @property
    def alive(self) -> bool:
        """Whether the connection is open, as far as this end knows; `wait` first."""
        return self._client.socket() is not None

    def wait(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass until the condition holds, the connection ends, or the time is over; whether the condition holds."""
        deadline = time.monotonic() + seconds
        while True:
            self._note()
            left = deadline - time.monotonic()
            sock = self._client.socket()
            if until() or left <= 0 or sock is None:
                return until()
            waiter = select.poll()
            waiter.register(sock.fileno(), select.POLLIN | (select.POLLOUT if self._client.want_write() else 0))
            pending = self._client.pending()
            ready = waiter.poll(0.0 if pending else 1000.0 * min(left, 0.2))
            self._client.work(readable=pending or any(event & ~select.POLLOUT for _, event in ready))

    def subscribe(self, topic_filter: str, seconds: float = ANSWER_SECONDS) -> bool:
        """Subscribe at QoS 1; whether the broker says that it has granted it, which need not be true."""
        if not self.alive:
            return False
        _, mid = self._client.subscribe(topic_filter, 1)
        answered = self.wait(seconds, lambda: mid in self._client.answered)
        return answered and all(denied != mid for denied, _ in self._client.denied)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, seconds: float = ANSWER_SECONDS) -> bool:
        """Publish at QoS 1; whether the broker has acknowledged it, which need not mean that it passes it on."""
        if not self.alive:
            return False
        mid = self._client.publish(topic, payload, 1, retain).mid
        return self.wait(seconds, lambda: mid in self._acknowledged)

    def hears(self, topic: str, payload: bytes, seconds: float = ANSWER_SECONDS) -> bool:
        """Whether this message arrives in time, or has arrived."""
        return self.wait(seconds, lambda: any(m.topic == topic and m.payload == payload for m in self.heard))

    def vanish(self) -> None:
        """End without a word, so that the broker publishes the will."""
        self._client.abandon()

    def close(self) -> None:
        """Say good-bye, if there is still somebody to say it to."""
        if self.alive and self._client.accepted:
            self._client.disconnect()
            self.wait(1.0, lambda: not self.alive)
        self._client.abandon()

    def __enter__(self) -> "Probe":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _note(self) -> None:
        self.heard += self._client.arrived
        self._client.arrived.clear()
        self.oversized += self._client.dropped
        self._client.dropped = 0
        self._acknowledged.update(self._client.done)
        self._client.done.clear()

    def _why(self) -> str:
        if self._client.refused:
            return refusal(self._client.refused).reason
        if self._client.failure is not None:
            return explain(self._client.failure).reason
        return SILENT_REFUSAL if not self.alive else "no answer to our CONNECT"


def _anonymous_context(address: BrokerAddress) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(address.ca))
    except OSError as error:
        raise LinkError(f"cannot use the CA certificate {address.ca}", found=str(error), remedy="Check the path") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
