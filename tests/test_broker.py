import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.reasoncodes import ReasonCode

from edgefl.brokers.acl import may_publish, may_read
from edgefl.brokers.connect import Connect, parse_connect
from edgefl.brokers.embedded import check_loopback
from edgefl.brokers.listener import Listener
from edgefl.brokers.mosquitto import Mosquitto, find_mosquitto, write_configuration
from edgefl.device.config import load_bundle
from edgefl.errors import BrokerError, MessageError
from edgefl.server.founding import create_fleet
from edgefl.server.provision import provision
from edgefl.store.fleet import Fleet

KINDS = [
    pytest.param("mosquitto", marks=pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed")),
    pytest.param("embedded", marks=pytest.mark.skipif(find_spec("amqtt") is None, reason="amqtt is not installed")),
]
PRIVATE = "efl/v1/down/cam-02/receipt"


def free_port() -> int:
    """A port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Running:
    """A broker process, its fleet, and the TLS files of its devices."""

    process: subprocess.Popen[str]
    fleet: Fleet
    bundles: Path
    port: int


@contextmanager
def running(fleet: Fleet, kind: str, port: int) -> Iterator[Running]:
    """`edgefl broker` for as long as the block lasts, whatever happens in it."""
    process = start(fleet, kind, port)
    try:
        yield Running(process, fleet, fleet.path.parent / "bundles", port)
    finally:
        end(process)


def start(fleet: Fleet, kind: str, port: int) -> subprocess.Popen[str]:
    """`edgefl broker`, ready."""
    command = [sys.executable, "-m", "edgefl", "broker", "--fleet", str(fleet.path), "--broker", kind, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    assert line == f"broker ready on 127.0.0.1:{port} ({kind})\n", process.stderr.read()
    return process


def end(process: subprocess.Popen[str]) -> int:
    """Ask a process to end; its exit code."""
    process.terminate()
    try:
        process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """A fleet with the devices cam-01 and cam-02, whose bundles lie beside it."""
    made = create_fleet(tmp_path_factory.mktemp("fleet") / "farm", name="farm")
    provision(made, ["cam-01", "cam-02"], "rpi-zero-2w", made.path.parent / "bundles")
    return made


@pytest.fixture(scope="module", params=KINDS)
def broker(request: pytest.FixtureRequest, fleet: Fleet) -> Iterator[Running]:
    """Each of the two brokers in turn."""
    with running(fleet, request.param, free_port()) as broker:
        yield broker


@dataclass
class Client:
    """A client on its own thread that notes what happens to it."""

    mqtt: mqtt.Client
    connected: threading.Event = field(default_factory=threading.Event)
    refused: threading.Event = field(default_factory=threading.Event)
    subscribed: threading.Event = field(default_factory=threading.Event)
    acknowledged: threading.Event = field(default_factory=threading.Event)
    codes: list[str] = field(default_factory=list)
    received: list[tuple[str, bytes]] = field(default_factory=list)

    def settles(self) -> bool:
        """Wait until the broker has accepted or refused."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (self.connected.is_set() or self.refused.is_set()):
            time.sleep(0.01)
        return self.connected.is_set() or self.refused.is_set()

    def close(self) -> None:
        """Disconnect and end the thread."""
        self.mqtt.disconnect()
        self.mqtt.loop_stop()

    def subscribe(self, topic: str) -> None:
        """Subscribe and wait for the answer, whatever it is."""
        self.subscribed.clear()
        self.mqtt.subscribe(topic, 1)
        assert self.subscribed.wait(120)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish and wait for the acknowledgement."""
        self.acknowledged.clear()
        self.mqtt.publish(topic, payload, 1, retain)
        assert self.acknowledged.wait(120)


Connects = Callable[..., Client]


def open_client(
    broker: Running,
    name: str,
    *,
    client_id: str | None = None,
    will: tuple[str, bytes] | None = None,
    files: tuple[Path, Path] | None = None,
    protocol: mqtt.MQTTProtocolVersion = mqtt.MQTTv311,
    wait: bool = True,
    clean: bool = True,
) -> Client:
    """A client with the certificate of `name` (nobody has none), connected if `wait`."""
    raw = mqtt.Client(
        mqtt.CallbackAPIVersion.VERSION2,
        client_id or name,
        None if protocol == mqtt.MQTTv5 else clean,
        protocol=protocol,
    )
    client = Client(raw)
    pair = (broker.bundles / name / "device.crt", broker.bundles / name / "device.key")
    if name == "edgefl-server":
        pair = (broker.fleet.server_certificate, broker.fleet.server_key)
    context = ssl.create_default_context(cafile=str(broker.fleet.root_certificate))
    if name != "nobody":
        context.load_cert_chain(*(files or pair))
    raw.tls_set_context(context)
    if will:
        raw.will_set(*will, qos=1)

    def on_connect(_client: mqtt.Client, _data: object, _flags: object, code: ReasonCode, _properties: object) -> None:
        client.codes.append(str(code))
        (client.refused if code.is_failure else client.connected).set()

    raw.on_connect = on_connect
    raw.on_disconnect = lambda *_: client.refused.set()
    raw.on_subscribe = lambda *_: client.subscribed.set()
    raw.on_publish = lambda *_: client.acknowledged.set()
    raw.on_message = lambda _c, _u, message: client.received.append((message.topic, message.payload))
    try:
        raw.connect("127.0.0.1", broker.port, keepalive=30)
    except OSError:
        client.refused.set()
        return client
    raw.loop_start()
    assert client.settles()
    assert not wait or client.connected.is_set()
    return client


@pytest.fixture
def connect(broker: Running) -> Iterator[Connects]:
    """Makes clients and takes them down afterwards."""
    clients: list[Client] = []

    def make(name: str, **options: Any) -> Client:
        clients.append(open_client(broker, name, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def vanish(broker: Running, name: str, will: str) -> None:
    """Connect as a device with a will, in a process that dies without a word once the broker has answered."""
    script = (
        "import sys, ssl, os, paho.mqtt.client as mqtt\n"
        "port, name, will, ca, certificate, key = sys.argv[1:]\n"
        "client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, name)\n"
        "context = ssl.create_default_context(cafile=ca)\n"
        "context.load_cert_chain(certificate, key)\n"
        "client.tls_set_context(context)\n"
        "client.will_set(will, b'gone', 1)\n"
        "client.on_connect = lambda *_: os._exit(0)\n"
        "client.connect('127.0.0.1', int(port))\n"
        "client.loop_forever()\n"
    )
    bundle = broker.bundles / name
    files = [str(broker.fleet.root_certificate), str(bundle / "device.crt"), str(bundle / "device.key")]
    subprocess.run([sys.executable, "-c", script, str(broker.port), name, will, *files], check=True, timeout=120)


def arrives(client: Client, topic: str, seconds: float = 10.0) -> bool:
    """Whether a message on this topic comes in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if any(name == topic for name, _ in client.received):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.broker
class TestBothBrokers:
    """One suite for both brokers: what is refused by one is refused by the other."""

    def test_device_and_server_talk(self, connect: Connects) -> None:
        """What is permitted works: up from the device, down and to all from the server, with TLS and host name checks."""
        server, device = connect("edgefl-server"), connect("cam-01")
        server.subscribe("efl/v1/up/#")
        device.subscribe("efl/v1/down/cam-01/#")
        device.subscribe("efl/v1/all/#")
        device.publish("efl/v1/up/cam-01/report", b"hello")
        server.publish("efl/v1/down/cam-01/receipt", b"stored")
        server.publish("efl/v1/all/round/digits/full", b"order")
        assert arrives(server, "efl/v1/up/cam-01/report")
        assert arrives(device, "efl/v1/down/cam-01/receipt")
        assert arrives(device, "efl/v1/all/round/digits/full")

    @pytest.mark.parametrize("topic", ["efl/v1/up/cam-02/report", "efl/v1/all/manifest/digits/x", PRIVATE, "other/topic"])
    def test_a_publish_below_anothers_name_does_not_arrive(self, connect: Connects, topic: str) -> None:
        """A device cannot speak as another device or as the server; what it says under its own name still arrives."""
        server, rogue = connect("edgefl-server"), connect("cam-01")
        server.subscribe("efl/v1/#")
        rogue.publish(topic, b"forged")
        rogue.publish("efl/v1/up/cam-01/report", b"after")
        assert arrives(server, "efl/v1/up/cam-01/report")
        assert not any(payload == b"forged" for _, payload in server.received)

    @pytest.mark.parametrize("topic", [PRIVATE, "efl/v1/down/+/receipt", "efl/v1/down/#", "#", "efl/v1/up/#"])
    def test_a_subscription_to_others_yields_nothing(self, connect: Connects, topic: str) -> None:
        """A device hears what is meant for it and for all, and nothing of what is meant for or said by others."""
        server, victim, rogue = connect("edgefl-server"), connect("cam-02"), connect("cam-01")
        rogue.subscribe(topic)
        rogue.subscribe("efl/v1/down/cam-01/#")
        server.publish(PRIVATE, b"secret")
        victim.publish("efl/v1/up/cam-02/want", b"private")
        server.publish("efl/v1/down/cam-01/receipt", b"mine")
        assert arrives(rogue, "efl/v1/down/cam-01/receipt")
        assert not any(payload in (b"secret", b"private") for _, payload in rogue.received)

    def test_retained_messages_of_others_stay_hidden(self, connect: Connects) -> None:
        """Neither a subscription nor coming back to a kept session brings another device's retained state."""
        server, victim = connect("edgefl-server"), connect("cam-02")
        server.subscribe("efl/v1/up/#")
        server.publish("efl/v1/all/manifest/digits/zero", b"public", retain=True)
        victim.publish("efl/v1/up/cam-02/state", b"private", retain=True)
        for _ in range(2):
            rogue = connect("cam-01", clean=False)
            rogue.subscribe("efl/v1/up/cam-02/#")
            rogue.subscribe("efl/v1/all/#")
            assert arrives(rogue, "efl/v1/all/manifest/digits/zero")
            assert not any(payload == b"private" for _, payload in rogue.received)
            rogue.close()
        victim.publish("efl/v1/up/cam-02/state", b"", retain=True)
        server.publish("efl/v1/all/manifest/digits/zero", b"", retain=True)

    def test_a_will_below_anothers_name_is_never_sent(self, broker: Running, connect: Connects) -> None:
        """A device cannot leave a will that declares another device dead."""
        server = connect("edgefl-server")
        server.subscribe("efl/v1/#")
        vanish(broker, "cam-01", "efl/v1/up/cam-02/state")
        assert not arrives(server, "efl/v1/up/cam-02/state", 1.0)

    def test_the_own_will_is_sent(self, broker: Running, connect: Connects) -> None:
        """A device that vanishes is declared dead by its own will."""
        server = connect("edgefl-server")
        server.subscribe("efl/v1/#")
        vanish(broker, "cam-02", "efl/v1/up/cam-02/state")
        assert arrives(server, "efl/v1/up/cam-02/state")

    def test_without_a_certificate_there_is_no_connection(self, connect: Connects) -> None:
        """A client that trusts the fleet but has no certificate is refused."""
        client = connect("nobody", wait=False)
        assert client.refused.wait(120)
        assert not client.connected.is_set()

    def test_a_foreign_authoritys_certificate_is_refused(self, connect: Connects, tmp_path: Path) -> None:
        """A certificate of another fleet for the same name opens nothing."""
        foreign = create_fleet(tmp_path / "other", name="farm")
        provision(foreign, ["cam-01"], "rpi-zero-2w", tmp_path / "out")
        files = (tmp_path / "out" / "cam-01" / "device.crt", tmp_path / "out" / "cam-01" / "device.key")
        client = connect("cam-01", files=files, wait=False)
        assert client.refused.wait(120)
        assert not client.connected.is_set()

    def test_the_brokers_own_certificate_is_no_way_in(self, broker: Running, connect: Connects) -> None:
        """A serverAuth certificate is refused as a client's."""
        files = (broker.fleet.broker_certificate, broker.fleet.broker_key)
        client = connect("edgefl-broker", files=files, wait=False)
        assert client.refused.wait(120)
        assert not client.connected.is_set()

    @pytest.mark.parametrize("clean", [True, False])
    def test_another_client_id_takes_nobody_elses_place(self, connect: Connects, clean: bool) -> None:
        """A device that connects as another neither disconnects it, nor hears its messages, nor speaks for it."""
        server, victim = connect("edgefl-server"), connect("cam-02", clean=False)
        server.subscribe("efl/v1/#")
        victim.subscribe("efl/v1/down/cam-02/#")
        rogue = connect("cam-01", client_id="cam-02", wait=False, clean=clean)
        rogue.mqtt.subscribe("efl/v1/down/cam-02/#", 1)
        rogue.mqtt.publish("efl/v1/up/cam-02/report", b"forged", 1)
        server.publish("efl/v1/down/cam-02/receipt", b"for cam-02")
        assert arrives(victim, "efl/v1/down/cam-02/receipt")
        victim.publish("efl/v1/up/cam-02/report", b"true")
        assert arrives(server, "efl/v1/up/cam-02/report")
        assert rogue.received == []
        assert (("efl/v1/up/cam-02/report", b"forged")) not in server.received
        assert not victim.refused.is_set()

    def test_a_message_above_the_limit_stops_at_the_broker(self, connect: Connects) -> None:
        """128 KiB pass, more does not, and the server hears the device afterwards."""
        server, device = connect("edgefl-server"), connect("cam-01")
        server.subscribe("efl/v1/up/#")
        device.publish("efl/v1/up/cam-01/want", b"x" * 131_072)
        assert arrives(server, "efl/v1/up/cam-01/want")
        device.mqtt.publish("efl/v1/up/cam-01/update", b"x" * 200_000, 0)
        assert not arrives(server, "efl/v1/up/cam-01/update", 1.0)

    def test_a_version_5_client_gets_an_answer(self, connect: Connects) -> None:
        """MQTT 5 connects to Mosquitto and is refused, not left hanging, by the embedded broker."""
        client = connect("cam-01", protocol=mqtt.MQTTv5, wait=False)
        assert client.codes[0] in ("Success", "Unsupported protocol version")


@pytest.mark.broker
@pytest.mark.parametrize("kind", KINDS)
def test_sigterm_ends_the_broker_and_frees_the_port(tmp_path: Path, kind: str) -> None:
    """The command ends with 0, and what it started ends with it: the port is free for the next one."""
    port, fleet = free_port(), create_fleet(tmp_path / "farm", name="farm")
    assert end(start(fleet, kind, port)) == 0
    assert end(start(fleet, kind, port)) == 0


@pytest.mark.broker
@pytest.mark.parametrize("kind", KINDS)
def test_a_taken_port_is_said_in_words(tmp_path: Path, kind: str) -> None:
    """Exit code 4, one line, what to do; no traceback."""
    fleet = create_fleet(tmp_path / "farm", name="farm")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        command = [sys.executable, "-m", "edgefl", "broker", "--fleet", str(fleet.path), "--broker", kind, "--port", port]
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 4
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
    assert "--port" in result.stderr
    assert "Traceback" not in result.stderr


def listener_for(fleet: Fleet, port: int) -> Listener:
    """The fleet's listener on another port."""
    return Listener(fleet.broker, fleet.root_certificate, fleet.broker_certificate, fleet.broker_key, port)


@pytest.mark.broker
@pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed")
def test_mosquitto_keeps_retained_messages_over_a_restart(fleet: Fleet) -> None:
    """What was retained before a clean stop is there afterwards."""
    port = free_port()
    for attempt in range(2):
        with running(fleet, "mosquitto", port) as broker:
            server = open_client(broker, "edgefl-server")
            if attempt == 0:
                server.publish("efl/v1/all/manifest/digits/x", b"kept", retain=True)
            else:
                server.subscribe("efl/v1/all/#")
                assert arrives(server, "efl/v1/all/manifest/digits/x")
            server.close()


@pytest.mark.broker
@pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed")
def test_a_refused_configuration_shows_mosquittos_words(tmp_path: Path) -> None:
    """A damaged certificate gives Mosquitto's own complaint, not a time-out."""
    fleet = create_fleet(tmp_path / "farm", name="farm")
    fleet.broker_certificate.write_text("no certificate")
    with pytest.raises(BrokerError, match="Mosquitto ended") as caught:
        Mosquitto(listener_for(fleet, free_port()))
    assert "certificate" in caught.value.found.lower()


@pytest.mark.broker
@pytest.mark.skipif(find_mosquitto() is None or not Path("/proc").is_dir(), reason="needs Mosquitto on Linux")
def test_a_killed_command_takes_mosquitto_with_it(fleet: Fleet) -> None:
    """Even kill -9 of `edgefl broker` leaves no Mosquitto behind on its port."""
    port = free_port()
    process = start(fleet, "mosquitto", port)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return
        time.sleep(0.05)
    pytest.fail("Mosquitto still listens")


def test_without_mosquitto_the_message_says_what_to_install(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Mosquitto gets a way out."""
    monkeypatch.setattr("edgefl.brokers.mosquitto.find_mosquitto", lambda: None)
    with pytest.raises(BrokerError, match="apt install mosquitto"):
        Mosquitto(listener_for(fleet, 1))


def test_the_written_configuration_has_no_gaps(fleet: Fleet) -> None:
    """Every place of the template is filled in, and the access file lies beside it."""
    path = write_configuration(listener_for(fleet, 1883))
    settings = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert not any("@" in line for line in settings)
    assert "require_certificate true" in settings
    assert "listener 1883 127.0.0.1" in settings
    assert (path.parent / "acl").is_file()


@pytest.mark.parametrize("bind", ["0.0.0.0", "192.0.2.1", "::", "example.com", ""])  # noqa: S104 - refused
def test_the_embedded_broker_refuses_every_other_address(bind: str) -> None:
    """What other machines could reach is Mosquitto's business."""
    with pytest.raises(BrokerError, match="this machine only"):
        check_loopback(bind)


@pytest.mark.parametrize(
    ("user", "topic", "publish", "read"),
    [
        ("cam-01", "efl/v1/up/cam-01/state", True, False),
        ("cam-01", "efl/v1/up/cam-01", False, False),
        ("cam-01", "efl/v1/up/cam-011/state", False, False),
        ("cam-01", "efl/v1/up/+/state", False, False),
        ("cam-01", "efl/v1/down/cam-01/#", False, True),
        ("cam-01", "efl/v1/all/#", False, True),
        ("cam-01", "efl/v1/+/cam-01/x", False, False),
        ("cam-01", "$SYS/x", False, False),
        ("+", "efl/v1/up/+/state", False, False),
        ("", "efl/v1/up//state", False, False),
        ("edgefl-server", "efl/v1/up/#", True, True),
        ("edgefl-server", "#", False, False),
    ],
)
def test_the_access_rule(user: str, topic: str, publish: bool, read: bool) -> None:
    """The rule as a table."""
    assert (may_publish(user, topic), may_read(user, topic)) == (publish, read)


def test_the_first_packet_is_read_as_the_standard_says() -> None:
    """Golden bytes of a CONNECT with a will (MQTT 3.1.1, section 3.1), and every truncation of it is refused."""
    body = b"\x00\x04MQTT\x04\x06\x00\x3c\x00\x06cam-01\x00\x03a/b\x00\x01x"
    assert parse_connect(body) == Connect(4, "cam-01", "a/b")
    assert parse_connect(b"\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x00") == Connect(5, "", None)
    for cut in range(len(body) - 3):
        with pytest.raises(MessageError):
            parse_connect(body[:cut])


def test_a_bundle_leads_to_its_broker(fleet: Fleet) -> None:
    """What a device reads from its bundle is the fleet's address and working TLS files."""
    bundle = load_bundle(fleet.path.parent / "bundles" / "cam-01")
    assert (bundle.config.host, bundle.config.port) == (fleet.settings.host, fleet.settings.port)
    context = ssl.create_default_context(cafile=str(bundle.ca))
    context.load_cert_chain(bundle.certificate, bundle.key)
