"""The two usual ways to send a file over MQTT, as plainly as paho allows, in the place of the server.

* `retained`: one message that holds the whole variant, kept by the broker.
* `unicast`: each device's blocks on a topic of its own, one for each device in turn, QoS 1, at most `WINDOW` unacknowledged.
"""

import ssl
import threading

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.push_receivers import WHOLE, own_topic
from benchmarks.push_stage import Stage
from edgefl.names import SERVER
from edgefl.store.blobs import BlobStore
from edgefl.wire.files import BLOCK_SIZE, Block
from edgefl.wire.messages import encode

WINDOW = 20
PATIENCE = 600.0


class Publisher:
    """A connected publisher with the server's certificate."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        address = stage.server_address
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=SERVER, protocol=mqtt.MQTTv311)
        context = ssl.create_default_context(cafile=str(address.ca))
        context.load_cert_chain(address.certificate, address.key)
        client.tls_set_context(context)
        self._room = threading.Semaphore(WINDOW)
        client.on_publish = lambda *_: self._room.release()
        up = threading.Event()
        client.on_connect = lambda *_: up.set()
        client.max_queued_messages_set(0)
        client.connect(address.host, address.port)
        client.loop_start()
        assert up.wait(30.0), "the broker does not answer"
        self._client = client

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def retained(self) -> None:
        """All files in one message."""
        blobs = BlobStore(self._stage.fleet.blobs)
        self._publish(WHOLE, b"".join(blobs.get(ref.sha256) for ref in self._stage.files), retain=True)

    def unicast(self, devices: int) -> None:
        """All blocks to each of the first devices."""
        blobs = BlobStore(self._stage.fleet.blobs)
        names = [own_topic(bundle.name) for bundle in self._stage.bundles[:devices]]
        for ref in self._stage.files:
            data = blobs.get(ref.sha256)
            for index in range(len(ref.blocks)):
                payload = encode(Block(ref.sha256[:16], index, data[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]))
                for name in names:
                    self._publish(name, payload)

    def _publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        assert self._room.acquire(timeout=PATIENCE), "the broker does not acknowledge"
        self._client.publish(topic, payload, 1, retain)
