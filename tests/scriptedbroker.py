"""A broker that does what a script says, over TLS on loopback, in a thread; and a link to it.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).
"""

import contextlib
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from edgefl.link.address import BrokerAddress
from edgefl.link.contract import Event
from edgefl.link.paho import PahoLink
from toycertificates import LATELY, Days, certificate

CONNACK = b"\x20\x02\x00\x00"
Packet = tuple[int, bytes]
Script = Callable[["ScriptedBroker", ssl.SSLSocket], None]
Serve = Callable[..., tuple["ScriptedBroker", PahoLink]]


class ScriptedBroker:
    """Accepts TLS connections and runs a script on each; what the script raises ends the connection."""

    def __init__(self, directory: Path, script: Script, *, days: Days = LATELY) -> None:
        self.own = certificate(directory, "broker", days=days)
        self.client = certificate(directory, "client")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.own)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.client[0])
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


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[Serve]:
    """What starts a scripted broker and makes a link to it."""
    made: list[tuple[ScriptedBroker, PahoLink]] = []

    def start(script: Script, *, keepalive: int = 30, window: int = 20, days: Days = LATELY) -> tuple[ScriptedBroker, PahoLink]:
        broker = ScriptedBroker(directory / f"broker{len(made)}", script, days=days)
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
