"""PahoLink against brokers that are absent, foreign, broken or hostile: a scripted broker in a thread, over TLS on loopback."""

import contextlib
import datetime as dt
import ipaddress
import os
import random
import resource
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgefl.errors import LinkError
from edgefl.link.address import BrokerAddress
from edgefl.link.backoff import Backoff
from edgefl.link.contract import Arrived, Connected, Disconnected, Event, Message, Refused
from edgefl.link.leash import CONNECT_TIMEOUT
from edgefl.link.outgoing import Outgoing
from edgefl.link.paho import PahoLink
from edgefl.wire.messages import MAX_PACKET

CONNACK = b"\x20\x02\x00\x00"


def certificate(directory: Path, name: str, *, host: str = "127.0.0.1", days: tuple[float, float] = (-1, 1)) -> tuple[Path, Path]:
    """A self-signed certificate, which is its own CA, and its key."""
    directory.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + dt.timedelta(days=days[0]))
        .not_valid_after(now + dt.timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = directory / f"{name}.pem", directory / f"{name}.key"
    paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


Packet = tuple[int, bytes]
Script = Callable[["ScriptedBroker", ssl.SSLSocket], None]


class ScriptedBroker:
    """Accepts TLS connections and runs a script on each; what the script raises ends the connection."""

    def __init__(
        self, directory: Path, script: Script, *, trusts: Path | None = None, days: tuple[float, float] = (-1, 1)
    ) -> None:
        self.own = certificate(directory, "broker", days=days)
        self.client = certificate(directory, "client")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.own)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(trusts or self.client[0])
        self.context, self.script = context, script
        self.seen: list[list[Packet]] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self.listener.accept()
                plain.settimeout(20)
                with contextlib.suppress(OSError, EOFError), self.context.wrap_socket(plain, server_side=True) as sock:
                    self.seen.append([])
                    self.script(self, sock)

    def read(self, sock: ssl.SSLSocket) -> Packet:
        """The next packet: first byte and body."""
        head, length, shift = self._exactly(sock, 1)[0], 0, 0
        while True:
            byte = self._exactly(sock, 1)[0]
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        packet = head, self._exactly(sock, length)
        self.seen[-1].append(packet)
        return packet

    @staticmethod
    def _exactly(sock: ssl.SSLSocket, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = sock.recv(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def accept(self, sock: ssl.SSLSocket) -> None:
        """Read CONNECT, accept it."""
        assert self.read(sock)[0] == 0x10
        sock.sendall(CONNACK)

    def publishes(self, connection: int = -1) -> list[bytes]:
        """Payloads of the QoS 1 messages that came over a connection."""
        bodies = [body for head, body in self.seen[connection] if head & 0xF0 == 0x30]
        return [body[2 + struct.unpack("!H", body[:2])[0] + 2 :] for body in bodies]

    def address(self) -> BrokerAddress:
        """How to reach it with the certificate that it trusts."""
        return BrokerAddress("127.0.0.1", self.port, self.own[0], *self.client)

    def close(self) -> None:
        """No more connections."""
        self.listener.close()


def packet(head: int, body: bytes) -> bytes:
    """An MQTT packet."""
    length, digits = len(body), bytearray()
    while True:
        length, digit = divmod(length, 128)
        digits.append(digit | (128 if length else 0))
        if not length:
            return bytes([head]) + bytes(digits) + body


def publish(topic: bytes, payload: bytes, mid: int) -> bytes:
    """A QoS 1 PUBLISH packet."""
    return packet(0x32, struct.pack("!H", len(topic)) + topic + struct.pack("!H", mid) + payload)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., tuple[ScriptedBroker, PahoLink]]]:
    """Start a scripted broker and a link to it."""
    made: list[tuple[ScriptedBroker, PahoLink]] = []

    def start(script: Script, *, keepalive: int = 30, window: int = 20, **options: Path) -> tuple[ScriptedBroker, PahoLink]:
        broker = ScriptedBroker(tmp_path / f"broker{len(made)}", script, **options)
        link = PahoLink(broker.address(), "client", keepalive=keepalive, window=window, rng=random.Random(1))
        made.append((broker, link))
        return broker, link

    yield start
    for broker, link in made:
        link.close(0.0)
        broker.close()


def gather(link: PahoLink, until: Callable[[list[Event]], bool], seconds: float = 60.0) -> list[Event]:
    """Poll until the events satisfy a condition."""
    events: list[Event] = []
    deadline = time.monotonic() + seconds
    while not until(events):
        assert time.monotonic() < deadline, f"waited in vain; events: {events}"
        events += link.poll(0.05)
    return events


def listen(broker: ScriptedBroker, sock: ssl.SSLSocket) -> None:
    """Accept, then read for ever and answer nothing."""
    broker.accept(sock)
    while True:
        broker.read(sock)


def test_window_holds_across_reconnections(serve: Callable[..., tuple[ScriptedBroker, PahoLink]]) -> None:
    """Unacknowledged, only a window of messages goes out, on every connection the same oldest ones."""
    go = threading.Event()

    def script(broker: ScriptedBroker, sock: ssl.SSLSocket) -> None:
        broker.accept(sock)
        for _ in range(7):
            broker.read(sock)
        sock.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            broker.read(sock)
        go.set()

    broker, link = serve(script, window=7)
    for number in range(200):
        link.publish("t", b"%d" % number)
    for _ in range(3):
        gather(link, lambda _: go.is_set())
        go.clear()
        assert broker.publishes() == [b"%d" % number for number in range(7)]
    assert link.outgoing == sum(len(b"%d" % number) for number in range(200))


def test_oversize_message_is_dropped_in_bounded_memory(serve: Callable[..., tuple[ScriptedBroker, PahoLink]]) -> None:
    """A 100 MiB message is acknowledged, counted and forgotten without being held in memory; the next one arrives."""

    def script(broker: ScriptedBroker, sock: ssl.SSLSocket) -> None:
        broker.accept(sock)
        size = 100 << 20
        head = publish(b"t", b"", 1)[2:]
        length = len(head) + size
        digits = bytes([length & 127 | 128, length >> 7 & 127 | 128, length >> 14 & 127 | 128, length >> 21])
        sock.sendall(b"\x32" + digits + head)
        for _ in range(size >> 20):
            sock.sendall(bytes(1 << 20))
        sock.sendall(publish(b"t", b"small", 2))
        while True:
            broker.read(sock)

    broker, link = serve(script)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    events = gather(link, lambda events: any(isinstance(event, Arrived) for event in events))
    assert [event for event in events if isinstance(event, Arrived)] == [Arrived("t", b"small", False)]
    assert link.traffic.dropped == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10  # KiB
    gather(link, lambda _: (0x40, b"\x00\x01") in broker.seen[-1])


@pytest.mark.parametrize(
    "bad",
    [
        publish(b"\xff\xfe", b"x", 1),
        publish(b"t" * 2000, b"x", 1),
        publish(b"t", bytes(MAX_PACKET + 1), 1),
        publish(b"t" * 60000, bytes(MAX_PACKET - 1000), 1),
    ],
    ids=["topic that is no text", "long topic", "large payload", "long topic and large payload"],
)
def test_unusable_messages_are_dropped(serve: Callable[..., tuple[ScriptedBroker, PahoLink]], bad: bytes) -> None:
    """A message that cannot be used is counted and acknowledged; what follows arrives whole."""

    def script(broker: ScriptedBroker, sock: ssl.SSLSocket) -> None:
        broker.accept(sock)
        sock.sendall(bad + publish(b"t", b"good", 2))
        while True:
            broker.read(sock)

    _, link = serve(script)
    events = gather(link, lambda events: any(isinstance(event, Arrived) for event in events))
    assert [event for event in events if isinstance(event, Arrived)] == [Arrived("t", b"good", False)]
    assert link.traffic.dropped == 1


@pytest.mark.parametrize("seed", range(6))
def test_junk_ends_the_connection_and_nothing_else(serve: Callable[..., tuple[ScriptedBroker, PahoLink]], seed: int) -> None:
    """Whatever bytes follow the CONNACK, the link reports a lost connection and tries again; it never raises."""
    junk = random.Random(seed).randbytes(4000)
    heads = (b"\xf0", b"\x32\x01", b"\x90\x00", b"\x40\x01", b"\x20\xff\xff\xff\xff\x01", b"")

    def script(broker: ScriptedBroker, sock: ssl.SSLSocket) -> None:
        broker.accept(sock)
        sock.sendall(heads[seed] + junk)

    broker, link = serve(script)
    link.subscribe("t")
    events = gather(link, lambda _: len(broker.seen) >= 3)
    assert any(isinstance(event, Disconnected) for event in events)


def test_refusal_has_a_reason_and_a_remedy(serve: Callable[..., tuple[ScriptedBroker, PahoLink]]) -> None:
    """A CONNACK that says "not authorised" becomes a LinkError naming broker and remedy, later one single event."""

    def script(broker: ScriptedBroker, sock: ssl.SSLSocket) -> None:
        broker.read(sock)
        sock.sendall(b"\x20\x02\x00\x05")

    broker, link = serve(script)
    with pytest.raises(LinkError) as caught:
        link.connect(5.0)
    assert f"127.0.0.1:{broker.port}" in str(caught.value)
    assert "not authorized" in caught.value.found
    assert caught.value.remedy
    events = gather(link, lambda _: len(broker.seen) >= 4)
    assert [type(event) for event in events] == [Disconnected]


def test_silent_broker_is_given_up(serve: Callable[..., tuple[ScriptedBroker, PahoLink]]) -> None:
    """A broker that never answers CONNECT makes `connect` fail in time."""
    _, link = serve(lambda _broker, _sock: time.sleep(60))
    started = time.monotonic()
    with pytest.raises(LinkError, match="no answer"):
        link.connect(0.5)
    assert time.monotonic() - started < 20.0


def test_half_open_connection_is_noticed(serve: Callable[..., tuple[ScriptedBroker, PahoLink]]) -> None:
    """A broker that stops answering pings is given up after at most twice the keepalive."""
    spans: list[float] = []
    while len(spans) < 3 and min(spans, default=3.0) >= 3.0:  # a busy machine may be late, but not every time
        _, link = serve(listen, keepalive=1)
        gather(link, lambda events: Connected(False) in events)
        started = time.monotonic()
        gather(link, lambda events: any(isinstance(event, Disconnected) for event in events))
        spans.append(time.monotonic() - started)
    assert min(spans) < 3.0


def test_slow_reader_never_blocks_publish(serve: Callable[..., tuple[ScriptedBroker, PahoLink]]) -> None:
    """With a broker that reads nothing, publishing and polling return at once, until the budget says no."""

    def script(broker: ScriptedBroker, sock: ssl.SSLSocket) -> None:
        broker.accept(sock)
        time.sleep(60)

    _, link = serve(script, window=1000)
    gather(link, lambda events: Connected(False) in events)

    def flood() -> None:
        for _ in range(1000):
            link.publish("t", bytes(MAX_PACKET))
            link.poll(0.0)

    started = time.monotonic()
    with pytest.raises(LinkError, match="no room"):
        flood()
    assert time.monotonic() - started < 20.0
    assert link.outgoing <= 8 << 20


def test_subscription_refused_by_the_broker(serve: Callable[..., tuple[ScriptedBroker, PahoLink]]) -> None:
    """A SUBACK with a failure code is told, naming the filter."""

    def script(broker: ScriptedBroker, sock: ssl.SSLSocket) -> None:
        broker.accept(sock)
        _, body = broker.read(sock)
        sock.sendall(packet(0x90, body[:2] + b"\x01\x80"))
        broker.read(sock)

    _, link = serve(script)
    link.subscribe("mine")
    link.subscribe("theirs")
    events = gather(link, lambda events: any(isinstance(event, Refused) for event in events))
    assert Refused("theirs") in events
    assert Refused("mine") not in events


def test_wake_descriptor_ends_the_wait(serve: Callable[..., tuple[ScriptedBroker, PahoLink]]) -> None:
    """`poll` returns as soon as a descriptor of the caller is readable, connected or not."""
    broker, link = serve(listen)
    reader, writer = os.pipe()
    for connected in (True, False):
        if connected:
            gather(link, lambda events: Connected(False) in events)
        else:
            broker.close()
            link._lost(link._connection.trouble)
            link._connection._backoff.due = time.monotonic() + 60
            link.poll(0.0)
        started = time.monotonic()
        threading.Timer(0.2, os.write, (writer, b"!")).start()
        assert link.poll(60.0, wake=[reader]) == []
        assert 0.1 < time.monotonic() - started < 20.0
        os.read(reader, 1)
    os.close(reader)
    os.close(writer)


def test_absent_broker(tmp_path: Path) -> None:
    """Without a broker, `connect` fails at once and says what to start or check."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = certificate(tmp_path, "client")
    link = PahoLink(BrokerAddress("127.0.0.1", port, own[0], *own), "client")
    with pytest.raises(LinkError, match="connection refused") as caught:
        link.connect(2.0)
    assert "Start the broker" in caught.value.remedy
    assert link.poll(0.0)
    assert not link.connected


def test_wrong_certificates_are_told_apart(serve: Callable[..., tuple[ScriptedBroker, PahoLink]], tmp_path: Path) -> None:
    """Wrong CA, wrong host name, expired certificate, and a certificate of ours that is refused: each in its own words."""
    broker, _ = serve(listen)
    other = certificate(tmp_path / "other", "other")
    cases = [
        (BrokerAddress("127.0.0.1", broker.port, other[0], *broker.client), "does not hold", "CA certificate"),
        (BrokerAddress("localhost", broker.port, broker.own[0], *broker.client), "does not hold", "a name that stands"),
        # The reset may overtake the alert that explains it; the remedy is the same.
        (BrokerAddress("127.0.0.1", broker.port, broker.own[0], *other), "the broker", "Check that this client's certificate"),
    ]
    for address, found, remedy in cases:
        with pytest.raises(LinkError) as caught:
            PahoLink(address, "client").connect(5.0)
        assert found in caught.value.found
        assert remedy in caught.value.remedy
    old, _ = serve(listen, days=(-3, -1))
    with pytest.raises(LinkError, match="clock"):
        PahoLink(old.address(), "client").connect(5.0)


def test_a_clock_that_is_set_later_lets_the_link_in(serve: Callable[..., tuple[ScriptedBroker, PahoLink]]) -> None:
    """To a clock that lies behind, the broker's certificate is not valid yet: the link says so, tries on, and gets in."""
    _, link = serve(listen, days=(2.5 / 86400, 1))
    events = gather(link, lambda events: any(isinstance(e, Connected) for e in events))
    (first, *_), attempts = events, link.traffic.attempts
    assert isinstance(first, Disconnected)
    assert "not yet valid" in first.reason
    assert attempts >= 2
    with pytest.raises(LinkError, match="Check this machine's clock"):
        PahoLink(serve(listen, days=(1, 2))[0].address(), "client").connect(5.0)


def test_missing_files_are_named(tmp_path: Path) -> None:
    """A missing CA, certificate or key is a LinkError that names the file."""
    own = certificate(tmp_path, "client")
    other = certificate(tmp_path, "other")
    missing = tmp_path / "missing.pem"
    for files in ((missing, *own), (own[0], missing, own[1]), (own[0], own[0], missing), (own[0], own[0], other[1])):
        with pytest.raises(LinkError, match="cannot use") as caught:
            PahoLink(BrokerAddress("127.0.0.1", 1, *files), "client").connect(1.0)
        assert any(str(file) in str(caught.value) for file in files)


def test_certificate_files_are_read_for_every_connection(serve: Callable[..., tuple[ScriptedBroker, PahoLink]]) -> None:
    """A certificate that is replaced is used from the next connection on; a broken one is told, and healed by a good one."""
    broker, link = serve(listen)
    gather(link, lambda events: Connected(False) in events)
    good = broker.client[0].read_bytes()
    broker.client[0].write_bytes(b"broken")
    client = link._connection.client
    assert client is not None
    client.abandon()
    events = gather(link, lambda events: sum(isinstance(event, Disconnected) for event in events) == 2)
    assert isinstance(events[-1], Disconnected)
    assert str(broker.client[0]) in events[-1].reason
    broker.client[0].write_bytes(good)
    gather(link, lambda events: Connected(False) in events)


def test_connecting_anew_gives_up_an_attempt_with_the_old_files(serve: Callable[..., tuple[ScriptedBroker, PahoLink]]) -> None:
    """A link that waits for the broker's answer does not go on with what it read before; it begins a new attempt at once."""

    def script(broker: ScriptedBroker, sock: ssl.SSLSocket) -> None:
        if len(broker.seen) == 1:
            while True:
                broker.read(sock)
        listen(broker, sock)

    broker, link = serve(script)
    started = time.monotonic()
    while not broker.seen or not broker.seen[0]:
        link.poll(0.05)
    link.reconnect()
    gather(link, lambda events: Connected(False) in events)
    assert len(broker.seen) == 2
    assert time.monotonic() - started < CONNECT_TIMEOUT


def test_backoff_grows_with_jitter_and_forgets_after_success() -> None:
    """Pauses lie below a limit that doubles from 0.5 to 60 s; only a connection that lasted starts over."""
    backoff = Backoff(random.Random(0))
    pauses = []
    for attempt in range(12):
        backoff.failed(100.0)
        pauses.append(backoff.due - 100.0)
        assert 0.0 <= pauses[-1] <= min(60.0, 0.5 * 2**attempt)
    assert max(pauses) > 20.0
    backoff.failed(100.0, lasted=1.0)
    assert Backoff(random.Random(0)).due == 0.0
    backoff.failed(100.0, lasted=11.0)
    assert backoff.due - 100.0 <= 0.5


def test_taking_back_keeps_order_and_drops_qos_0() -> None:
    """After a lost connection, handed messages come first again in their old order; QoS 0 messages are gone; the size agrees."""
    queue = Outgoing(window=3, budget=1000)
    for number in range(6):
        queue.put(Message("t", b"%d" % number, qos=0 if number in (1, 4) else 1))
    handed: list[bytes] = []

    def send(message: Message) -> int:
        handed.append(message.payload)
        return len(handed)

    queue.hand_over(send)
    assert handed == [b"0", b"1", b"2"]
    queue.acknowledge(1)
    queue.acknowledge(99)
    queue.take_back()
    assert queue.size == 3
    queue.hand_over(send)
    assert handed[3:] == [b"2", b"3", b"5"]
