"""Blocks over a real broker to a device behind a link of 16 KB/s, beside fast ones: real paho, TLS and access rules."""

import random
import socket
import threading
import time
from collections import Counter
from contextlib import ExitStack

import pytest

import toyproxy as toy
from edgefl.brokers.listener import Listener
from edgefl.brokers.mosquitto import Mosquitto, find_mosquitto
from edgefl.device.fetching import Fetcher
from edgefl.link.address import BrokerAddress
from edgefl.link.contract import Arrived, Connected, Disconnected
from edgefl.link.paho import PahoLink
from edgefl.names import SERVER
from edgefl.server.blocks import BlockServer
from edgefl.server.founding import create_fleet
from edgefl.server.provision import provision
from edgefl.store.blobs import BlobStore
from edgefl.store.partial import PartialFile
from edgefl.wire import topics
from edgefl.wire.blocks import file_ref
from edgefl.wire.files import BLOCK_SIZE, Want
from edgefl.wire.messages import decode

pytestmark = [
    pytest.mark.broker,
    pytest.mark.slow,
    pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed"),
]
SLOW = 16_000


def free_port():
    """A port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Works:
    """Something that turns in a thread of its own until it is told to stop."""

    def begin(self):
        """Start turning."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def _run(self):
        while not self._stop.is_set():
            self.turn()

    def end(self):
        """Stop, and close the link."""
        self._stop.set()
        self._thread.join()
        self.link.close(1.0)


class Office(Works):
    """The server's part: requests in, blocks out, bytes counted by topic."""

    def __init__(self, fleet, port, blobs, ref):
        """Connect, with one file on offer."""
        address = BrokerAddress("127.0.0.1", port, fleet.root_certificate, fleet.server_certificate, fleet.server_key)
        self.link = PahoLink(address, SERVER)
        self.link.subscribe(topics.ALL_UP)
        self.link.connect()
        self.egress = Counter()
        self.blocks = BlockServer(blobs, self._publish, lambda: (2 << 20) - self.link.outgoing)
        self.blocks.offer({ref.sha256: ("m", ref)})
        self.begin()

    def _publish(self, _, topic, payload):
        self.link.publish(topic, payload, qos=0)
        self.egress[topic] += len(payload)

    def turn(self):
        """Hear and answer."""
        for event in self.link.poll(min(0.1, self.blocks.wait(time.monotonic()))):
            if isinstance(event, Arrived) and event.topic.endswith("/want"):
                device, _ = topics.parse_up(event.topic)
                self.blocks.wanted(device, decode(event.payload, Want), time.monotonic())
        self.blocks.advance(time.monotonic())


class Board(Works):
    """A device that fetches one file."""

    def __init__(self, name, bundle, port, root, keepalive=30):
        """Connect."""
        address = BrokerAddress("127.0.0.1", port, bundle / "ca.crt", bundle / "device.crt", bundle / "device.key")
        self.link = PahoLink(address, name, keepalive=keepalive, rng=random.Random(0))
        self.blobs = BlobStore(root / "blobs")
        self.fetcher = Fetcher(
            name, self.link, self.blobs, root / "partial", reserve=0, clock=time.monotonic, rng=random.Random(0)
        )
        self.lost, self.done, self.alone = [], threading.Event(), False
        self.link.connect(30.0)

    def fetch(self, ref):
        """Begin."""
        self.ref, self.began = ref, time.monotonic()
        self.fetcher.need("m", (ref,))
        return self.begin()

    def turn(self):
        """One turn of an agent's loop."""
        for event in self.link.poll(min(0.2, self.fetcher.wait())):
            match event:
                case Arrived(_, payload, _):
                    self.fetcher.arrived(payload)
                case Connected(_):
                    self.fetcher.reconnected()
                case Disconnected(reason):
                    self.lost.append(reason)
        self.fetcher.tick()
        self.alone |= any(assembly.alone for assembly in self.fetcher._active.values())
        if self.fetcher.completed():
            self.seconds = time.monotonic() - self.began
            self.done.set()

    def finishes(self, seconds):
        """Wait for the file."""
        assert self.done.wait(seconds), f"not complete after {seconds} s; lost: {self.lost}"
        self.end()


class Site:
    """A fleet with its broker and server, and boards by name."""

    def __init__(self, stack, root, blocks, boards, rate=SLOW):
        """Start everything."""
        self.root, self.stack = root, stack
        content = random.Random(0).randbytes(blocks * BLOCK_SIZE)
        self.ref, self.content = file_ref("weights", content), content
        blobs = BlobStore(root / "server")
        blobs.put(content)
        fleet = create_fleet(root / "fleet", name="farm")
        provision(fleet, boards, "rpi-zero-2w", root / "bundles")
        self.port = free_port()
        keys = fleet.broker_certificate, fleet.broker_key
        stack.enter_context(Mosquitto(Listener(fleet.path / "broker", fleet.root_certificate, *keys, self.port)))
        self.office = Office(fleet, self.port, blobs, self.ref)
        stack.callback(self.office.end)
        self.proxy = toy.Throttle(self.port, rate)
        stack.callback(self.proxy.close)

    def board(self, name, *, slow=False, keepalive=30, have=()):
        """A connected board, with these blocks on its disk."""
        with PartialFile(self.root / name / "partial", self.ref, reserve=0) as file:
            for index in have:
                file.write(index, self.content[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE])
        port = self.proxy.port if slow else self.port
        return Board(name, self.root / "bundles" / name, port, self.root / name, keepalive)

    def egress(self, device=""):
        """Blocks that the server has sent, to all or to one device."""
        topic = topics.own_block(device) if device else topics.block(self.ref.sha256.hex())
        return self.office.egress[topic] / BLOCK_SIZE


def test_slow_device_keeps_its_connection_beside_a_fast_one(tmp_path):
    """At 16 KB/s a block takes 2 s; keepalive is 5 s, and the others' blocks wait before the answer to each ping."""
    with ExitStack() as stack:
        site = Site(stack, tmp_path, 6, ["slow", "fast"])
        slow, fast = site.board("slow", slow=True, keepalive=5), site.board("fast")
        slow.fetch(site.ref)
        fast.fetch(site.ref)
        fast.finishes(60.0)
        slow.finishes(90.0)
        assert fast.seconds < max(5.0, slow.seconds / 2)  # on a busy machine both take longer
        assert slow.seconds > 0.9 * site.ref.length / SLOW
        assert slow.blobs.get(site.ref.sha256) == site.content
        assert (slow.lost, site.proxy.connections) == ([], 1)
        assert site.egress() + site.egress("slow") <= 2.2 * 6


def test_drowned_device_goes_alone_and_completes(tmp_path):
    """Others ask for the half of the file that it has, which fills its link: it leaves them and gets what it lacks alone."""
    with ExitStack() as stack:
        site = Site(stack, tmp_path, 12, ["slow", "fast"], rate=3 * SLOW)
        slow = site.board("slow", slow=True, keepalive=5, have=range(6, 12))
        fast = site.board("fast", have=range(6))
        slow.fetch(site.ref)
        time.sleep(0.3)
        fast.fetch(site.ref)
        fast.finishes(60.0)
        slow.finishes(60.0)
        assert slow.blobs.get(site.ref.sha256) == site.content
        assert (slow.lost, site.proxy.connections) == ([], 1)
        assert slow.alone
        assert site.egress("slow") <= 8
        assert fast.seconds < max(5.0, slow.seconds / 2)  # on a busy machine both take longer
