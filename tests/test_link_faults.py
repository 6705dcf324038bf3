"""PahoLink against brokers that are broken, slow or hostile: whatever they send or do not send."""

import contextlib
import os
import random
import resource
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgefl.errors import LinkError
from edgefl.link.contract import Arrived, Connected, Disconnected, Refused
from edgefl.wire.messages import MAX_PACKET
from scriptedbroker import ScriptedBroker, Serve, gather, listen, packet, publish, serving


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a scripted broker and a link to it."""
    with serving(tmp_path) as start:
        yield start


def test_window_holds_across_reconnections(serve: Serve) -> None:
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


def test_oversize_message_is_dropped_in_bounded_memory(serve: Serve) -> None:
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
def test_unusable_messages_are_dropped(serve: Serve, bad: bytes) -> None:
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
def test_junk_ends_the_connection_and_nothing_else(serve: Serve, seed: int) -> None:
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


def test_refusal_has_a_reason_and_a_remedy(serve: Serve) -> None:
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


def test_silent_broker_is_given_up(serve: Serve) -> None:
    """A broker that never answers CONNECT makes `connect` fail in time."""
    _, link = serve(lambda _broker, _sock: time.sleep(60))
    started = time.monotonic()
    with pytest.raises(LinkError, match="no answer"):
        link.connect(0.5)
    assert time.monotonic() - started < 20.0


def test_half_open_connection_is_noticed(serve: Serve) -> None:
    """A broker that stops answering pings is given up after at most twice the keepalive."""
    spans: list[float] = []
    while len(spans) < 3 and min(spans, default=3.0) >= 3.0:  # a busy machine may be late, but not every time
        _, link = serve(listen, keepalive=1)
        gather(link, lambda events: Connected(False) in events)
        started = time.monotonic()
        gather(link, lambda events: any(isinstance(event, Disconnected) for event in events))
        spans.append(time.monotonic() - started)
    assert min(spans) < 3.0


def test_slow_reader_never_blocks_publish(serve: Serve) -> None:
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


def test_subscription_refused_by_the_broker(serve: Serve) -> None:
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


def test_wake_descriptor_ends_the_wait(serve: Serve) -> None:
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
