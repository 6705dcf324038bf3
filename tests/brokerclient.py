"""A client of a broker process that is no link: it says and asks for whatever a test wants, as a rogue would.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).
"""

import ssl
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import paho.mqtt.client as mqtt
from paho.mqtt.reasoncodes import ReasonCode

from brokerprocess import Running


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
