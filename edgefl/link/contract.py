"""What every link to the broker offers. Two exist: `PahoLink` for real brokers, `MemoryLink` for tests and simulation.

Model: a link is owned by one thread. `publish`, `subscribe` and `unsubscribe` only write down what is wanted and return at once;
everything happens inside `poll`, the one place where time passes. What happens comes back from `poll` as events.

Promises:

* A QoS 1 message is delivered at least once for as long as the link lives, across any number of reconnections, in the order of
  publishing. It waits in one queue, counted in bytes. Nothing survives the process: what must, is kept by the caller until the
  other side has answered in words (a receipt, a block).
* A QoS 0 message is now or never: without a connection it is dropped, silently.
* Subscriptions are remembered and made again on every connection; retained messages then arrive again.
* Messages may arrive twice, late, or not at all (QoS 0). They are acknowledged before the caller has seen them.
* The loss of a connection is never an exception, always an event; the link reconnects by itself, from inside `poll`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from edgefl.errors import LinkError
from edgefl.wire.messages import MAX_PACKET

DEFAULT_BUDGET = 8 << 20
"""Bytes that may wait in a link's queue."""


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker has accepted the connection; `session_present` if it still held subscriptions and messages from before."""

    session_present: bool


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection was lost, or cannot be made for a new reason. Not repeated while the reason stays the same."""

    reason: str


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message; `retained` if the broker had kept it from before the subscription."""

    topic: str
    payload: bytes
    retained: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """The broker does not allow this subscription. Some brokers grant it and then deliver nothing."""

    filter: str


Event = Connected | Disconnected | Arrived | Refused


@dataclass(frozen=True, slots=True)
class Message:
    """A message to be published later: the will, or the last words of `close`."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False


Will = Message
"""What the broker publishes when the connection ends without a good-bye."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Counters since the link was made; bytes are of payloads only.

    `sent` counts each hand-over to the network, so a message sent again counts again. `dropped` counts arriving messages that
    were larger than a packet may be or had a topic that is no text. `attempts` counts attempts to connect.
    """

    sent: int = 0
    sent_bytes: int = 0
    received: int = 0
    received_bytes: int = 0
    dropped: int = 0
    attempts: int = 0


class Link(Protocol):
    """A connection to the broker, used by one thread."""

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Queue a message; never blocks.

        Raises:
            LinkError: the payload exceeds `MAX_PACKET`, the topic or QoS is impossible, or the queue's budget is used up.
        """
        ...

    def subscribe(self, topic_filter: str, qos: int = 1) -> None:
        """Receive what matches, from now on and after every reconnection.

        Raises:
            LinkError: the filter is malformed.
        """
        ...

    def unsubscribe(self, topic_filter: str) -> None:
        """No longer receive it; unknown filters are ignored."""
        ...

    def poll(self, timeout: float, wake: Sequence[int] = ()) -> list[Event]:
        """Let time pass: send, receive, reconnect.

        Args:
            timeout: seconds to wait at most for an event; 0 does what can be done at once.
            wake: file descriptors; poll returns as soon as one is readable (the caller reads it).

        Returns:
            The events since the last call, oldest first; possibly none.
        """
        ...

    def reconnect(self) -> None:
        """End the connection with a good-bye, so that no will is published, and make a new one at once.

        For a certificate that has changed: a connection that is made after this call has read the files after it. An attempt that
        waits for the broker's answer is given up for a new one; without either nothing happens. Nothing that is queued is lost.
        """
        ...

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection and it is not known to be lost."""
        ...

    @property
    def outgoing(self) -> int:
        """Payload bytes that are queued or not yet acknowledged."""
        ...

    @property
    def traffic(self) -> Traffic:
        """Counters."""
        ...

    def restart(self) -> None:
        """Give the connection up without a good-bye and make a new one: what waits in the broker for QoS 0 is dropped there.

        Without a connection nothing happens.
        """
        ...

    def close(self, timeout: float = 5.0, *, last: Message | None = None) -> None:
        """Send what is queued, then `last`, wait for the acknowledgements, disconnect so that no will is published.

        Without a connection, or when the time is up, what is left is given up: see `outgoing`. The link is of no use afterwards.
        """
        ...


def check_publish(topic: str, payload: bytes, qos: int) -> None:
    """Refuse what no broker would take, before it is queued: one oversize message would end every connection it is sent on.

    Raises:
        LinkError: payload over `MAX_PACKET`, QoS not 0 or 1, topic empty, too long or with wildcards.
    """
    if len(payload) > MAX_PACKET:
        raise LinkError(
            f"message to {topic[:100]} is too large", expected=f"at most {MAX_PACKET} bytes", found=f"{len(payload)} bytes"
        )
    if qos not in (0, 1):
        raise LinkError(f"message to {topic[:100]} has an unusable QoS", expected="0 or 1", found=str(qos))
    if not 0 < len(topic.encode()) <= 1024 or set(topic) & set("+#\0"):
        raise LinkError("a message cannot be published to this topic", expected="1 to 1024 bytes, no wildcard", found=topic[:100])


def check_filter(topic_filter: str) -> None:
    """Refuse a malformed subscription.

    Raises:
        LinkError: empty, too long, `#` anywhere but as the last level, or a wildcard that is not a whole level.
    """
    levels = topic_filter.split("/")
    wild = all(level in ("+", "#") or not set(level) & set("+#\0") for level in levels) and "#" not in levels[:-1]
    if not 0 < len(topic_filter.encode()) <= 1024 or not wild:
        raise LinkError("malformed subscription", expected="levels, or + or # as whole levels", found=topic_filter[:100])


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a topic is covered by a subscription (MQTT 3.1.1, section 4.7)."""
    wanted, levels = topic_filter.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in ("+", "#"):
        return False
    if wanted[-1] == "#":
        wanted = wanted[:-1]
        levels = levels[: len(wanted)]
    return len(wanted) == len(levels) and all(w in ("+", level) for w, level in zip(wanted, levels, strict=True))
