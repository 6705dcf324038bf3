"""A fetcher on a real disk and a broker in memory, with a scripted server, for the tests of fetching.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).
"""

import random
import time

from edgefl.device.fetching import Fetcher
from edgefl.link.contract import Arrived
from edgefl.link.memory import MemoryLink
from edgefl.link.memory_broker import MemoryBroker
from edgefl.store.blobs import BlobStore
from edgefl.wire.blocks import file_ref
from edgefl.wire.files import BLOCK_SIZE, Block
from edgefl.wire.messages import decode
from toyclock import Clock
from toyoffice import DEVICE, Office

CONTENT = random.Random(4).randbytes(15 * BLOCK_SIZE + 500)
REF = file_ref("weights", CONTENT)
COUNT = len(REF.blocks)
"""A file that a world's server has if a test offers it, its description, and how many blocks it has."""


class World:
    """A fetcher, a link, and a server that has files."""

    def __init__(self, root):
        """Connected and with nothing to do."""
        self.clock = Clock()
        self.broker = MemoryBroker(random.Random(0))
        self.office = Office(self.broker, self.clock)
        self.link = MemoryLink(self.broker, DEVICE)
        self.link.poll(0.0)
        self.blobs = BlobStore(root / "blobs")
        self.partial = root / "partial"
        self.fetcher = self.start()

    def start(self, **options):
        """A fetcher as after a start of the agent."""
        clock, rng = self.clock.monotonic, random.Random(0)
        self.fetcher = Fetcher(DEVICE, self.link, self.blobs, self.partial, reserve=0, clock=clock, rng=rng, **options)
        return self.fetcher

    def blocks_sent(self):
        """How many blocks the server has published."""
        return sum(count for topic, count in self.broker.published.items() if "/block" in topic)

    def turns(self, count=20, seconds=0.1):
        """Let time pass; what has been completed."""
        done = []
        for _ in range(count):
            for event in self.link.poll(0.0):
                if isinstance(event, Arrived):
                    self.fetcher.arrived(event.payload)
            self.fetcher.tick()
            self.office.turn()
            self.clock.now += seconds
            done += self.fetcher.completed()
        return done

    def until(self, done, seconds=120.0):
        """Take turns in real time, for what threads do; what has been completed."""
        completed, end = [], time.monotonic() + seconds
        while not done(completed):
            assert time.monotonic() < end, "it did not happen"
            completed += self.turns(1)
            time.sleep(0.002)
        return completed


def served(world):
    """Indices of the blocks that the server has published, as they are published from now on."""
    indices, publish = [], world.office.link.publish

    def noted(topic, payload, **options):
        if "/block" in topic:
            indices.append(decode(payload, Block).index)
        publish(topic, payload, **options)

    world.office.link.publish = noted
    return indices
