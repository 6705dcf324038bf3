"""The promises of every link, kept by the memory link and by paho against real brokers."""

import contextlib
import datetime as dt
import ipaddress
import os
import pwd
import random
import shutil
import socket
import subprocess
import sys
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
from edgefl.link.contract import Arrived, Connected, Disconnected, Event, Link, Message, matches
from edgefl.link.memory import MemoryLink
from edgefl.link.memory_broker import MemoryBroker
from edgefl.link.paho import PahoLink
from edgefl.wire.messages import MAX_PACKET

MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
AMQTT = """
import asyncio, sys
from amqtt.broker import Broker
async def main(port, ca, certificate, key):
    broker = Broker({
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}", "ssl": True,
                                  "cafile": ca, "certfile": certificate, "keyfile": key}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    })
    await broker.start()
    await asyncio.Event().wait()
asyncio.run(main(*sys.argv[1:]))
"""


class Authority:
    """A throw-away certificate authority in a directory."""

    def __init__(self, directory: Path, name: str = "test-ca") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.ca = directory / "ca.pem"
        self.ca.write_bytes(self._sign(self.name, self.key, is_ca=True).public_bytes(serialization.Encoding.PEM))

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        is_ca: bool = False,
        days: tuple[int, int] = (-1, 1),
        host: str = "127.0.0.1",
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + dt.timedelta(days=days[0]))
            .not_valid_after(now + dt.timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(names, critical=False)
            .sign(self.key, hashes.SHA256())
        )

    def issue(self, name: str, *, days: tuple[int, int] = (-1, 1), host: str = "127.0.0.1") -> tuple[Path, Path]:
        """Files of a certificate for this common name and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        paths = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        paths[0].write_bytes(self._sign(subject, key, days=days, host=host).public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        return paths


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RealBroker:
    """A broker process on loopback with TLS, and links to it."""

    def __init__(self, directory: Path, kind: str, *, server_days: tuple[int, int] = (-1, 1), extra: str = "") -> None:
        self.kind = kind
        self.authority = Authority(directory)
        self.port = free_port()
        self.server = self.authority.issue("broker", days=server_days)
        self.configuration = directory / "mosquitto.conf"
        self.configuration.write_text(
            f"listener {self.port} 127.0.0.1\ncafile {self.authority.ca}\ncertfile {self.server[0]}\nkeyfile {self.server[1]}\n"
            f"user {pwd.getpwuid(os.getuid()).pw_name}\n"
            "require_certificate true\nuse_identity_as_username true\nallow_anonymous false\nlog_dest none\n" + extra
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.links: list[PahoLink] = []
        self.start()

    def start(self) -> None:
        """Start, and wait until the port answers."""
        if self.kind == "mosquitto":
            command = [str(MOSQUITTO), "-c", str(self.configuration)]
        else:
            files = (str(self.authority.ca), str(self.server[0]), str(self.server[1]))
            command = [sys.executable, "-c", AMQTT, str(self.port), *files]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.05)
        pytest.fail("the broker did not start")

    def stop(self) -> None:
        """Kill it: nothing is persisted."""
        if self.process:
            self.process.kill()
            self.process.wait(120)
            self.process = None

    def address(self, name: str) -> BrokerAddress:
        """The broker, with a certificate for this identity."""
        certificate, key = self.authority.issue(name)
        return BrokerAddress("127.0.0.1", self.port, self.authority.ca, certificate, key)

    def link(self, name: str, *, will: Message | None = None, clean_session: bool = True, budget: int = 8 << 20) -> PahoLink:
        """A link that is closed with the broker."""
        link = PahoLink(self.address(name), name, will=will, clean_session=clean_session, budget=budget, rng=random.Random(0))
        self.links.append(link)
        return link

    def drop(self, link: PahoLink) -> None:
        """Cut a connection without a good-bye."""
        client = link._connection.client
        assert client is not None
        sock = client.socket()
        assert isinstance(sock, socket.socket)
        sock.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Close all links, then the broker."""
        for link in self.links:
            link.close(0.0)
        self.stop()


class MemoryWorld:
    """The same for the broker in memory."""

    kind = "memory"

    def __init__(self) -> None:
        self.broker = MemoryBroker()

    def link(self, name: str, *, will: Message | None = None, clean_session: bool = True, budget: int = 8 << 20) -> MemoryLink:
        """A link to it."""
        return MemoryLink(self.broker, name, will=will, clean_session=clean_session, budget=budget)

    def drop(self, link: MemoryLink) -> None:
        """Cut a connection."""
        link.drop()

    def stop(self) -> None:
        """Go away and forget everything."""
        self.broker.stop(forget=True)

    def start(self) -> None:
        """Come back."""
        self.broker.start()

    def end(self) -> None:
        """Nothing to end."""


World = RealBroker | MemoryWorld
needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
KINDS = [
    "memory",
    pytest.param("mosquitto", marks=[pytest.mark.broker, needs_mosquitto]),
    pytest.param("amqtt", marks=pytest.mark.broker),
]


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """Each kind of broker in turn."""
    if request.param == "amqtt":
        pytest.importorskip("amqtt")
    broker: World = MemoryWorld() if request.param == "memory" else RealBroker(tmp_path, request.param)
    yield broker
    broker.end()


def gather(*links: Link, until: Callable[[list[list[Event]]], bool], seconds: float = 60.0) -> list[list[Event]]:
    """Poll the links in turn until the events satisfy a condition; the events of each."""
    events: list[list[Event]] = [[] for _ in links]
    deadline = time.monotonic() + seconds
    while not until(events):
        assert time.monotonic() < deadline, f"waited in vain; events: {events}"
        for link, seen in zip(links, events, strict=True):
            seen.extend(link.poll(0.02))
    return events


def settle(*links: Link, seconds: float = 0.3) -> list[list[Event]]:
    """Poll for a while; the events of each link."""
    end = time.monotonic() + seconds
    return gather(*links, until=lambda _: time.monotonic() > end)


def messages(events: list[Event]) -> list[Arrived]:
    """The messages among events."""
    return [event for event in events if isinstance(event, Arrived)]


def online(*links: Link) -> None:
    """Poll until all are connected, and a little longer so that subscriptions are in force."""
    gather(*links, until=lambda _: all(link.connected for link in links))
    settle(*links)


def test_message_reaches_subscriber(world: World) -> None:
    """What one client publishes, another that subscribed receives byte for byte, and only what it subscribed to."""
    a, b = world.link("a"), world.link("b")
    b.subscribe("efl/v1/up/+/want")
    online(a, b)
    payload = bytes(range(256)) * 64
    a.publish("efl/v1/up/a/want", payload)
    a.publish("efl/v1/up/a/report", b"not for b")
    a.publish("efl/v1/up/a/want", b"", qos=0)
    _, seen = gather(a, b, until=lambda events: len(messages(events[1])) >= 2)
    assert messages(seen) == [Arrived("efl/v1/up/a/want", payload, False), Arrived("efl/v1/up/a/want", b"", False)]


def test_largest_packet_passes(world: World) -> None:
    """A payload of exactly MAX_PACKET bytes arrives."""
    a, b = world.link("a"), world.link("b")
    b.subscribe("big")
    online(a, b)
    a.publish("big", b"x" * MAX_PACKET)
    _, seen = gather(a, b, until=lambda events: bool(messages(events[1])))
    assert len(messages(seen)[0].payload) == MAX_PACKET


def test_retained_message_waits_for_latecomers(world: World) -> None:
    """The last retained message of a topic is delivered to a later subscriber, marked as retained; an empty one deletes it."""
    a, b = world.link("a"), world.link("b")
    online(a)
    a.publish("r/1", b"old", retain=True)
    a.publish("r/1", b"new", retain=True)
    a.publish("r/2", b"gone", retain=True)
    a.publish("r/2", b"", retain=True)
    gather(a, until=lambda _: a.outgoing == 0)
    b.subscribe("r/#")
    online(b)
    late = world.link("late")
    late.subscribe("r/#")
    (seen,) = gather(late, until=lambda events: bool(messages(events[0])))
    seen += settle(late)[0]
    assert set(messages(seen)) == {Arrived("r/1", b"new", True)}  # a broker may send it twice


def test_will_on_abrupt_end_only(world: World) -> None:
    """The will is published when the connection is cut, and not after a clean close."""
    watcher = world.link("watcher")
    watcher.subscribe("dead/+")
    polite = world.link("polite", will=Message("dead/polite", b"!"))
    rude = world.link("rude", will=Message("dead/rude", b"!"))
    online(watcher, polite, rude)
    polite.close(2.0, last=Message("dead/polite", b"good-bye"))
    world.drop(rude)  # type: ignore[arg-type]  # a world takes its own links
    (seen,) = gather(watcher, until=lambda events: len(messages(events[0])) >= 2)
    seen += settle(watcher)[0]
    assert sorted((m.topic, m.payload) for m in messages(seen)) == [("dead/polite", b"good-bye"), ("dead/rude", b"!")]


def test_drop_is_an_event_and_heals(world: World) -> None:
    """A cut connection is told once, comes back by itself with its subscriptions, and what was published meanwhile arrives."""
    a, b = world.link("a"), world.link("b")
    b.subscribe("t")
    online(a, b)
    world.drop(a)  # type: ignore[arg-type]  # a world takes its own links
    world.drop(b)  # type: ignore[arg-type]  # a world takes its own links
    events_a, events_b = gather(a, b, until=lambda events: all(Connected(False) in seen for seen in events))
    for events in (events_a, events_b):
        assert [type(event) for event in events if not isinstance(event, Arrived)] == [Disconnected, Connected]
    settle(a, b)
    a.publish("t", b"after")
    _, seen = gather(a, b, until=lambda events: bool(messages(events[1])))
    assert messages(seen) == [Arrived("t", b"after", False)]


def test_connecting_anew_is_no_death_and_loses_nothing(world: World) -> None:
    """After `reconnect` no will is published, subscriptions stand, what was queued arrives in order; offline it does nothing."""
    watcher, a = world.link("watcher"), world.link("a", will=Message("dead/a", b"!"))
    a.reconnect()
    watcher.subscribe("dead/+")
    watcher.subscribe("t/#")
    a.subscribe("back")
    online(watcher, a)
    for number in range(40):
        a.publish("t/before", b"%d" % number)
    a.reconnect()
    a.publish("t/after", b"")
    seen, _ = gather(watcher, a, until=lambda events: Arrived("t/after", b"", False) in events[0])
    assert [int(m.payload) for m in messages(seen) if m.topic == "t/before"][-40:] == list(range(40))
    assert not [m for m in messages(seen) if m.topic == "dead/a"]
    settle(watcher, a)
    watcher.publish("back", b"x")
    _, heard = gather(watcher, a, until=lambda events: bool(messages(events[1])))
    assert messages(heard)[0].topic == "back"


def test_queue_survives_broker_restart(world: World) -> None:
    """QoS 1 messages published while the broker is away are delivered afterwards, in order; QoS 0 messages are dropped."""
    a, b = world.link("a"), world.link("b")
    b.subscribe("t", qos=1)
    online(a, b)
    world.stop()
    gather(a, b, until=lambda _: not a.connected and not b.connected)
    for number in range(60):
        a.publish("t", b"%d" % number)
    a.publish("t", b"lost", qos=0)
    assert a.outgoing > 0
    world.start()
    gather(b, until=lambda _: b.connected)
    settle(b)
    _, seen = gather(a, b, until=lambda events: len(messages(events[1])) >= 60)
    order = list(dict.fromkeys(m.payload for m in messages(seen)))  # at least once: a repetition is allowed
    assert order == [b"%d" % number for number in range(60)]
    gather(a, until=lambda _: a.outgoing == 0)


def test_session_keeps_messages_while_away(world: World) -> None:
    """Without a clean session the broker keeps QoS 1 messages for a client that is away, and says that the session was there."""
    if world.kind == "amqtt":
        pytest.skip("amqtt delivers such messages marked as retained")
    a, b = world.link("a"), world.link("b", clean_session=False)
    b.subscribe("t")
    online(a, b)
    b.close(2.0)
    a.publish("t", b"while you were out")
    gather(a, until=lambda _: a.outgoing == 0)
    again = world.link("b", clean_session=False)
    (seen,) = gather(again, until=lambda events: bool(messages(events[0])))
    assert Connected(True) in seen
    assert messages(seen) == [Arrived("t", b"while you were out", False)]


def test_unsubscribed_is_silent(world: World) -> None:
    """After unsubscribing nothing of the filter arrives, not even after a reconnection."""
    a, b = world.link("a"), world.link("b")
    b.subscribe("t")
    b.subscribe("end")
    online(a, b)
    b.unsubscribe("t")
    world.drop(b)  # type: ignore[arg-type]  # a world takes its own links
    gather(b, until=lambda events: any(isinstance(event, Connected) for event in events[0]))
    settle(b)
    a.publish("t", b"no")
    a.publish("end", b"yes")
    _, seen = gather(a, b, until=lambda events: bool(messages(events[1])))
    assert [m.topic for m in messages(seen)] == ["end"]


def test_budget_and_size_are_checked_before_queueing(world: World) -> None:
    """An oversize message, an impossible topic, and a message over the budget are refused at once, and nothing is queued."""
    a = world.link("a", budget=1000)
    for topic, size in (("t", MAX_PACKET + 1), ("t/#", 1), ("", 1), ("+", 1), ("t", 1001)):
        with pytest.raises(LinkError):
            a.publish(topic, b"x" * size)
    a.publish("t", b"x" * 600)
    with pytest.raises(LinkError, match="no room"):
        a.publish("t", b"x" * 600)
    assert a.outgoing == 600
    with pytest.raises(LinkError):
        a.publish("t", b"", qos=2)
    for bad in ("", "a/#/b", "a+", "#a"):
        with pytest.raises(LinkError):
            a.subscribe(bad)
    gather(a, until=lambda _: a.outgoing == 0)
    a.publish("t", b"x" * 600)


def test_traffic_counts_payloads(world: World) -> None:
    """The counters hold messages and payload bytes, both ways."""
    a, b = world.link("a"), world.link("b")
    b.subscribe("t")
    online(a, b)
    for size in (10, 20, 30):
        a.publish("t", b"x" * size)
    gather(a, b, until=lambda events: len(messages(events[1])) == 3)
    assert (a.traffic.sent, a.traffic.sent_bytes) == (3, 60)
    assert (b.traffic.received, b.traffic.received_bytes, b.traffic.dropped) == (3, 60, 0)


def test_more_than_a_window_of_qos_0_goes_out_at_once(world: World) -> None:
    """QoS 0 messages are done when they are written, so that many windows of them need no waiting."""
    a, b = world.link("a"), world.link("b")
    b.subscribe("t", qos=0)
    online(a, b)
    for number in range(200):
        a.publish("t", b"%d" % number, qos=0)
    a.poll(0.0)
    assert a.outgoing == 0
    _, seen = gather(a, b, until=lambda events: len(messages(events[1])) == 200)
    assert [m.payload for m in messages(seen)] == [b"%d" % number for number in range(200)]


@pytest.mark.parametrize(
    ("topic_filter", "topic", "covered"),
    [
        ("a/b", "a/b", True),
        ("a/+", "a/b", True),
        ("a/+", "a/b/c", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "a/b", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
        ("+", "", True),
        ("a/+/c", "a//c", True),
        ("a/b/#", "a", False),
    ],
)
def test_wildcards(topic_filter: str, topic: str, covered: bool) -> None:
    """Filters cover topics as section 4.7 of MQTT 3.1.1 says."""
    assert matches(topic_filter, topic) is covered


def test_restart_makes_a_new_connection_and_keeps_what_is_wanted(world: World) -> None:
    """The link says that it was lost and is back; what was subscribed to still comes. Without a connection nothing happens."""
    a, b = world.link("a"), world.link("b")
    b.subscribe("efl/v1/up/+/want")
    b.restart()
    online(a, b)
    a.restart()
    a.publish("efl/v1/up/a/want", b"after")
    b.restart()
    lost, back = gather(a, b, until=lambda events: all(Connected(False) in seen for seen in events))
    assert [[type(event) for event in seen][:2] for seen in (lost, back)] == [[Disconnected, Connected]] * 2
    settle(b)
    a.publish("efl/v1/up/a/want", b"again")
    _, seen = gather(a, b, until=lambda events: bool(messages(events[1])))
    assert messages(seen)[-1].payload in (b"after", b"again")
