"""Receivers of a variant: many in one process, each with a connection, a thread and a directory of its own.

Model: the process is told on its standard input, in one JSON line, whom it plays and what is to come. It prints `ready` when all
its receivers are connected and subscribed. Then `go` on the input starts them, and for each that has everything, verified and
forced to the disk, it prints a line: the device and the moment (seconds of the monotonic clock, which all processes share).

* `multicast` receivers are what a device's agent has: a `PahoLink` and a `Fetcher`; they say that they are there, as it does.
* `retained` receivers get one message with all files; `unicast` receivers get blocks on topics of their own, unasked. Both use
  paho as its documentation shows it, check the same hashes and write through the same store.
"""

import json
import random
import ssl
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edgefl.device.config import Bundle, load_bundle
from edgefl.device.fetching import Fetcher
from edgefl.link.address import BrokerAddress
from edgefl.link.contract import Arrived, Connected
from edgefl.link.paho import PahoLink
from edgefl.store.blobs import BlobStore
from edgefl.store.partial import PartialFile
from edgefl.wire import topics
from edgefl.wire.files import Block, FileRef
from edgefl.wire.messages import decode, encode
from edgefl.wire.presence import State

WHOLE = f"{topics.ROOT}/all/whole/variant"
"""Topic of the one retained message."""
KEEPALIVE = 30
BETWEEN_TRIES = 2.0
_TELLING = threading.Lock()
"""One line at a time."""


def own_topic(device: str) -> str:
    """Where a device's own stream of blocks goes."""
    return f"{topics.ROOT}/down/{device}/block"


class Orders(msgspec.Struct, frozen=True):
    """What a process of receivers is to do; `files` holds msgpack of the FileRefs."""

    method: str
    host: str
    port: int
    bundles: list[str]
    state: str
    files: bytes


@dataclass(frozen=True, slots=True)
class Receiver:
    """One device and what it waits for. `go` starts it, `ready` says that it could."""

    bundle: Bundle
    orders: Orders
    files: tuple[FileRef, ...]
    state: Path
    go: threading.Event
    ready: threading.Semaphore

    def multicast(self) -> None:
        """Fetch as an agent does."""
        bundle, name = self.bundle, self.bundle.config.id
        address = BrokerAddress(self.orders.host, self.orders.port, bundle.ca, bundle.certificate, bundle.key)
        link = PahoLink(address, name)
        rng = random.Random()  # noqa: S311 - jitter is no secret
        fetcher = Fetcher(
            name, link, BlobStore(self.state / "blobs"), self.state / "partial", reserve=0, clock=time.monotonic, rng=rng
        )
        link.subscribe(own_topic(name))
        link.publish(topics.state(name), encode(State(1, online=True, profile=bundle.config.profile)), retain=True)
        there: set[bytes] = set()
        told = begun = False
        while len(there) < len({ref.sha256 for ref in self.files}):
            for event in link.poll(min(0.5, fetcher.wait())):
                if isinstance(event, Arrived):
                    fetcher.arrived(event.payload)
                elif isinstance(event, Connected):
                    fetcher.reconnected()
            fetcher.tick()
            if link.connected and not told:
                told = True
                self.ready.release()
            if self.go.is_set() and not begun:
                begun = True
                fetcher.need("variant", self.files)
            there.update(fetcher.completed())
        self._done()
        link.close(1.0)

    def retained(self) -> None:
        """Take one large message."""
        blobs = BlobStore(self.state / "blobs")

        def take(payload: bytes) -> bool:
            start = 0
            for ref in self.files:
                assert blobs.put(payload[start : start + ref.length]) == ref.sha256, "damaged"
                start += ref.length
            return True

        self._listen(WHOLE, take)

    def unicast(self) -> None:
        """Take blocks as they come."""
        partial, blobs = self.state / "partial", self.state / "blobs"
        blobs.mkdir(parents=True)
        open_files = {ref.sha256[:16]: PartialFile(partial, ref, reserve=0) for ref in self.files}

        def take(payload: bytes) -> bool:
            block = decode(payload, Block)
            file = open_files.get(block.file)
            if file is not None:
                file.write(block.index, block.data)
                if file.complete:
                    open_files.pop(block.file).finish(blobs)
            return not open_files

        self._listen(own_topic(self.bundle.config.id), take)

    def _listen(self, topic: str, take: Callable[[bytes], bool]) -> None:
        """Connect with paho and hand messages over until `take` has had all."""
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=self.bundle.config.id, clean_session=True, protocol=mqtt.MQTTv311
        )
        context = ssl.create_default_context(cafile=str(self.bundle.ca))
        context.load_cert_chain(self.bundle.certificate, self.bundle.key)
        client.tls_set_context(context)
        told = threading.Event()

        def subscribed(*_: object) -> None:
            if not told.is_set():
                told.set()
                self.ready.release()

        def arrived(client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
            if take(bytes(message.payload)):
                self._done()
                client.disconnect()

        client.on_connect = lambda client, *_: client.subscribe(topic, 1)
        client.on_subscribe = subscribed
        client.on_message = arrived
        while True:  # the first connection is not repeated by paho itself
            try:
                client.connect(self.orders.host, self.orders.port, KEEPALIVE)
                break
            except OSError:
                time.sleep(BETWEEN_TRIES)
        client.loop_forever()

    def _done(self) -> None:
        line = json.dumps({"device": self.bundle.config.id, "at": time.monotonic()})
        with _TELLING:
            print(line, flush=True)


def main() -> None:
    """Entry of a process of receivers."""
    orders = msgspec.json.decode(sys.stdin.readline(), type=Orders)
    files = msgspec.msgpack.decode(orders.files, type=tuple[FileRef, ...])
    go, ready = threading.Event(), threading.Semaphore(0)
    threading.stack_size(512 * 1024)
    for path in orders.bundles:
        receiver = Receiver(load_bundle(Path(path)), orders, files, Path(orders.state) / Path(path).name, go, ready)
        threading.Thread(target=getattr(receiver, orders.method), daemon=True).start()
    for _ in orders.bundles:
        ready.acquire()
    print("ready", flush=True)
    sys.stdin.readline()
    go.set()
    sys.stdin.readline()  # until the end of the input: nobody waits for us any more


if __name__ == "__main__":
    main()
