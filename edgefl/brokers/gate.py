"""The gate in front of amqtt: who may connect, and as whom.

amqtt 0.12.1 hands a session to whoever names its client id before it asks an authenticator, keeps the old connection's TLS object
with it, publishes wills without asking, sends every retained message to every client that comes back, and reads packets of any
length. All of it follows from its source; each class below says which of these it closes. They reach into amqtt's private
methods, which is why the version is pinned exactly.
"""

import asyncio
import ssl
from collections.abc import ItemsView, Iterator
from contextlib import suppress
from pathlib import Path
from typing import cast

from amqtt.adapters import ReaderAdapter, StreamReaderAdapter, StreamWriterAdapter
from amqtt.broker import Broker
from amqtt.contexts import Action, BrokerConfig, ListenerConfig
from amqtt.errors import NoDataError
from amqtt.plugins.base import BaseAuthPlugin
from amqtt.session import Session

from edgefl.brokers.acl import may_publish, may_read
from edgefl.brokers.connect import (
    LEVEL_3_1_1,
    LEVEL_5,
    MAX_CONNECT,
    REFUSED,
    REFUSED_ID,
    REFUSED_LEVEL,
    REFUSED_LEVEL_5,
    parse_connect,
)
from edgefl.errors import MessageError
from edgefl.wire.messages import MAX_PACKET

CONNECT_SECONDS = 10.0
"""How long a client may take to say who it is."""
LEAVE_SECONDS = 2.0
"""How long a new connection waits for the end of the one whose place it takes."""
CONNECT_PACKET = 0x10
MAX_READ = MAX_PACKET + 1024
"""Bytes of one packet: a full message and its topic."""


def common_name(tls: ssl.SSLObject | None) -> str | None:
    """The common name in the peer's verified certificate, or None without one."""
    certificate = tls.getpeercert() if tls is not None else None
    subject = cast("tuple[tuple[tuple[str, str], ...], ...]", (certificate or {}).get("subject", ()))
    for relative in subject:
        for key, value in relative:
            if key == "commonName":
                return value
    return None


class CertificateAuth(BaseAuthPlugin):  # type: ignore[misc] # amqtt ships no type information
    """The second look: amqtt's own authenticator, which compares the session's certificate with its client id."""

    async def authenticate(self, *, session: Session) -> bool:
        """Whether the client id is the certificate's common name."""
        return session.client_id is not None and common_name(session.ssl_object) == session.client_id


class GateReader(ReaderAdapter):  # type: ignore[misc] # amqtt ships no type information
    """Gives back the CONNECT packet that was read already, then reads on, never more than one packet's limit at once."""

    def __init__(self, seen: bytes, reader: asyncio.StreamReader) -> None:
        self._seen = seen
        self._rest = StreamReaderAdapter(reader)

    async def read(self, n: int = -1) -> bytes:
        """Exactly `n` bytes. Raises amqtt's NoDataError when a client announces a packet above the limit."""
        if n > MAX_READ:
            raise NoDataError(f"packet of {n} bytes")
        if self._seen:
            data, self._seen = self._seen[:n], self._seen[n:]
            return data
        return bytes(await self._rest.read(n))

    def feed_eof(self) -> None:
        """Tell the connection that nothing more comes."""
        self._rest.feed_eof()


class SteadyDict(dict[str, list[tuple[Session, int]]]):
    """The subscriptions, iterated over as they were at the start: amqtt awaits in between, and others subscribe meanwhile."""

    def __iter__(self) -> Iterator[str]:
        return iter(list(super().keys()))

    def items(self) -> ItemsView[str, list[tuple[Session, int]]]:  # type: ignore[override] # dict's own type has no public name
        """A copy's items."""
        return dict(super().items()).items()


class GatedBroker(Broker):  # type: ignore[misc] # amqtt ships no type information
    """amqtt with the gate in front and one access rule behind it."""

    def __init__(self, config: BrokerConfig, crl: Path | None = None) -> None:
        super().__init__(config)
        self._subscriptions = SteadyDict()
        self._crl = crl
        self._context: ssl.SSLContext | None = None
        self._listener: ListenerConfig | None = None
        self._waiting: set[asyncio.StreamWriter] = set()
        self._places: dict[str, tuple[asyncio.StreamWriter, asyncio.Event]] = {}

    def _create_ssl_context(self, listener: ListenerConfig) -> ssl.SSLContext:
        """Demand the client certificate in the handshake, where amqtt only asks for it, and one that is not revoked."""
        context: ssl.SSLContext = Broker._create_ssl_context(listener)  # noqa: SLF001 - see the module's docstring
        context.verify_mode = ssl.CERT_REQUIRED
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._crl is not None:
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
            context.load_verify_locations(self._crl)
        self._context, self._listener = context, listener
        return context

    def reload(self) -> None:
        """Read certificate and list of revoked ones again, for connections to come and those that have not said who they are."""
        if self._context is not None and self._listener is not None:
            with suppress(OSError):  # what was read before goes on holding
                self._context.load_cert_chain(self._listener["certfile"], self._listener["keyfile"])
            with suppress(OSError):
                if self._crl is not None:
                    self._context.load_verify_locations(self._crl)
        for writer in self._waiting:
            writer.transport.abort()

    async def stream_connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str) -> None:
        """Look at the first packet before amqtt does, and refuse a client that claims another's id or will."""
        name = common_name(writer.get_extra_info("ssl_object"))
        self._waiting.add(writer)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                seen, refusal = await _admit(reader, name)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, MessageError):
            seen, refusal = b"", b""
        finally:
            self._waiting.discard(writer)
        if seen and name is not None:
            place = writer, asyncio.Event()
            await self._take_place(name, place)
            try:
                await self._client_connected(listener_name, GateReader(seen, reader), StreamWriterAdapter(writer))
            finally:
                place[1].set()
                if self._places.get(name) is place:
                    del self._places[name]
            return
        with suppress(OSError):
            writer.write(refusal)
            await writer.drain()
            writer.close()

    async def _take_place(self, name: str, place: tuple[asyncio.StreamWriter, asyncio.Event]) -> None:
        """End an older connection of the same client, as MQTT 3.1.1 says in section 3.1.4; amqtt lets it go on speaking."""
        older, self._places[name] = self._places.get(name), place
        if older is not None:
            older[0].transport.abort()
            with suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_SECONDS):
                    await older[1].wait()

    async def _topic_filtering(self, session: Session, topic: str, action: Action) -> bool:
        """The access rule, without amqtt's detour through a task per plugin, message and subscriber."""
        user = session.client_id or ""
        return may_publish(user, topic) if action == Action.PUBLISH else may_read(user, topic)

    async def _publish_retained_messages_for_subscription(self, subscription: tuple[str, int], session: Session) -> None:
        """Retained messages, for the session's own subscriptions only."""
        if any(owner is session for owner, _ in self._subscriptions.get(subscription[0], ())):
            await super()._publish_retained_messages_for_subscription(subscription, session)


async def _admit(reader: asyncio.StreamReader, name: str | None) -> tuple[bytes, bytes]:
    """The first packet's bytes, or nothing and the refusal to send.

    Raises:
        MessageError: the first packet is no CONNECT or does not decode.
        IncompleteReadError: the client has gone.
    """
    head = await reader.readexactly(1)
    length = shift = 0
    while True:
        head += await reader.readexactly(1)
        length |= (head[-1] & 0x7F) << shift
        shift += 7
        if not head[-1] & 0x80:
            break
        if shift > 21:
            raise MessageError("a first packet without a length")
    if head[0] != CONNECT_PACKET or length > MAX_CONNECT:
        raise MessageError("the first packet is no CONNECT", found=f"type {head[0]:#x}, {length} bytes")
    body = await reader.readexactly(length)
    connect = parse_connect(body)
    if connect.level != LEVEL_3_1_1:
        return b"", REFUSED_LEVEL_5 if connect.level == LEVEL_5 else REFUSED_LEVEL
    if name is None or connect.client != name:
        return b"", REFUSED_ID
    if connect.will is not None and not may_publish(name, connect.will):
        return b"", REFUSED
    return head + body, b""
