"""What the tests of revocation share: a fleet of two cameras, a real broker, and clients that come back when thrown out.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).
"""

import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest

from edgefl.brokers.mosquitto import find_mosquitto
from edgefl.link.address import BrokerAddress
from edgefl.link.probe import Probe
from edgefl.server.founding import create_fleet
from edgefl.server.provision import provision
from edgefl.store.fleet import Fleet

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed")


@contextmanager
def broker(fleet: Fleet, kind: str = "mosquitto") -> Iterator[subprocess.Popen[str]]:
    """`edgefl broker` for as long as the block lasts."""
    command = [sys.executable, "-m", "edgefl", "broker", "--broker", kind, "--fleet", str(fleet.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "ready" in process.stdout.readline()
            yield process
        finally:
            process.terminate()


def context_of(fleet: Fleet, name: str) -> ssl.SSLContext:
    """TLS as this device or the server does it."""
    context = ssl.create_default_context(cafile=str(fleet.root_certificate))
    bundle = fleet.path.parent / "bundles" / name
    pair = (
        (fleet.server_certificate, fleet.server_key)
        if name == "edgefl-server"
        else (bundle / "device.crt", bundle / "device.key")
    )
    context.load_cert_chain(*pair)
    return context


@dataclass
class Client:
    """A real client on its own thread, which connects once more whenever it is thrown out."""

    connects: int = 0
    ends: int = 0
    heard: list[tuple[str, bytes, bool]] = field(default_factory=list)
    subscribed: threading.Event = field(default_factory=threading.Event)


@contextmanager
def client(
    fleet: Fleet, name: str, topic: str, *, retained: tuple[str, bytes] | None = None
) -> Iterator[tuple[Client, mqtt.Client]]:
    """A client that keeps a session, listens, reconnects, and may leave something retained."""
    noted = Client()
    raw = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, name, clean_session=False)
    raw.tls_set_context(context_of(fleet, name))
    raw.reconnect_delay_set(0.1, 0.2)

    def on_connect(*_: object) -> None:
        noted.connects += 1
        raw.subscribe(topic, 1)
        if retained:
            raw.publish(*retained, qos=1, retain=True)

    raw.on_connect = on_connect
    raw.on_disconnect = lambda *_: setattr(noted, "ends", noted.ends + 1)
    raw.on_subscribe = lambda *_: noted.subscribed.set()
    raw.on_message = lambda _c, _u, m: noted.heard.append((m.topic, m.payload, m.retain))
    raw.connect("127.0.0.1", fleet.settings.port, 30)
    raw.loop_start()
    try:
        assert noted.subscribed.wait(120)
        yield noted, raw
    finally:
        raw.disconnect()
        raw.loop_stop()


def is_admitted(fleet: Fleet, name: str) -> bool:
    """Whether the broker lets in whoever shows this device's certificate."""
    bundle = fleet.path.parent / "bundles" / name
    files = fleet.root_certificate, bundle / "device.crt", bundle / "device.key"
    with Probe(BrokerAddress("127.0.0.1", fleet.settings.port, *files), name) as probe:
        return probe.accepted


def eventually(condition: object, seconds: float = 120.0) -> bool:
    """Whether a condition comes true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


def two_cameras(root: Path) -> Fleet:
    """A fleet with cam-01 and cam-02, whose bundles lie beside it, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = create_fleet(root / "farm", name="farm", port=port)
    provision(made, ["cam-01", "cam-02"], "rpi-zero-2w", root / "bundles")
    return made
