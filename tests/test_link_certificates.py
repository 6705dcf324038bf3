"""PahoLink and certificates: brokers that are absent or foreign, files that are missing, wrong or replaced, clocks that lie."""

import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgefl.errors import LinkError
from edgefl.link.address import BrokerAddress
from edgefl.link.contract import Connected, Disconnected
from edgefl.link.leash import CONNECT_TIMEOUT
from edgefl.link.paho import PahoLink
from scriptedbroker import ScriptedBroker, Serve, gather, listen, serving
from toycertificates import certificate


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a scripted broker and a link to it."""
    with serving(tmp_path) as start:
        yield start


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


def test_wrong_certificates_are_told_apart(serve: Serve, tmp_path: Path) -> None:
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


def test_a_clock_that_is_set_later_lets_the_link_in(serve: Serve) -> None:
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


def test_certificate_files_are_read_for_every_connection(serve: Serve) -> None:
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


def test_connecting_anew_gives_up_an_attempt_with_the_old_files(serve: Serve) -> None:
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
