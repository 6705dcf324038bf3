"""A toy fleet for the server's tests: its database, blobs and broker, servers that come and go, and a clock on a string.

Its devices are `toydevice`'s, its model `toyupdates`'s.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).
"""

import hashlib
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np

from edgefl.codec.weights import encode_weights
from edgefl.identity.repository import found, with_targets
from edgefl.identity.signing import ASSIGNMENT, Signer, verify
from edgefl.layout import nested_index
from edgefl.link.memory import MemoryLink
from edgefl.link.memory_broker import MemoryBroker
from edgefl.names import SERVER
from edgefl.plan import Plan
from edgefl.recipe import PLAIN
from edgefl.server.service import Service
from edgefl.server.variants import store_parent
from edgefl.store.blobs import BlobStore
from edgefl.store.database import open_database, transaction
from edgefl.store.documents import documents, put_documents
from edgefl.store.ledger import start_training
from edgefl.store.registry import Device, add_devices
from edgefl.store.releases import release
from edgefl.store.versions import get_version, listed_manifests
from edgefl.wire import topics
from edgefl.wire.blocks import file_ref
from edgefl.wire.messages import Signed, decode, encode
from edgefl.wire.releases import Assignment, Manifest
from toyclock import START, Clock
from toydevice import ToyDevice
from toyupdates import MODEL, VARIANTS, WIDE


@cache
def empty_database():
    """The bytes of a fleet's database without a row; made once, because making it waits for the disk many times."""
    with TemporaryDirectory() as directory:
        path = Path(directory) / "fleet.sqlite"
        open_database(path).close()
        return path.read_bytes()


class ToyFleet:
    """A fleet's database, blobs and broker; services and devices come and go.

    Attributes:
        wide: layout of a version's parent.
        variants: name, layout and precision of its variant for each profile.
    """

    wide, variants = WIDE, VARIANTS

    def __init__(self, root: Path):
        """An empty fleet below an existing directory."""
        self.root = root
        self.clock = Clock()
        self.broker = MemoryBroker()
        self.blobs = BlobStore(root / "blobs")
        self.release, self.online, self.root_key = Signer.generate(), Signer.generate(), Signer.generate()
        self.database = self._open()
        with transaction(self.database):
            put_documents(self.database, found([self.root_key], [self.release], self.online, START, thresholds={}))
        self.profiles = {}

    def _open(self, **options):
        path = self.root / "fleet.sqlite"
        if not path.exists():
            path.write_bytes(empty_database())
        database = open_database(path, **options)
        database.execute("PRAGMA synchronous=OFF")  # processes die here, not the power
        return database

    @property
    def id(self):
        """What devices know the fleet by."""
        return hashlib.sha256(documents(self.database)["1.root"]).hexdigest()

    def provision(self, **profiles):
        """Enter devices: id=profile."""
        with transaction(self.database):
            add_devices(self.database, [Device(name, profile, "00", START) for name, profile in profiles.items()])
        self.profiles |= profiles

    def push(self, *profiles, model=MODEL, seed=0, graphs=b"a graph", recipe=PLAIN, hold=False, parent=None, **said):
        """Enter a version for these profiles (all by default); its number. `said` goes into its manifests."""
        if parent is None:
            parent = np.random.default_rng(seed).normal(scale=0.1, size=self.wide.size).astype(np.float32)
        with transaction(self.database):
            (last,) = self.database.execute("SELECT MAX(version) FROM versions WHERE model=?", (model,)).fetchone()
            number = int(last or 0) + 1
            row = (model, number, START, msgspec.msgpack.encode(self.wide), store_parent(self.blobs, parent))
            self.database.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?)", row)
            for profile in profiles or self.variants:
                self._enter(model, number, profile, parent, graphs, recipe, said)
            known = documents(self.database)
            put_documents(
                self.database,
                with_targets(known, listed_manifests(self.database), [self.release], self.online, self.clock.wall()),
            )
            if not hold:
                release(self.database, model, number, self.clock.wall())
        return number

    def _enter(self, model, number, profile, parent, graphs, recipe, said):
        name, layout, precision = self.variants[profile]
        weights = encode_weights(parent[nested_index(self.wide, layout)], layout, precision)
        graph = graphs + name.encode()
        files = (file_ref("train", graph), file_ref("weights", weights))
        for data in (graph, weights):
            self.blobs.put(data)
        manifest = Manifest(
            model,
            number,
            profile,
            name,
            "portable",
            layout,
            (10,),
            4,
            8,
            files,
            self.online.public_key,
            int(START),
            int(START) * 2,
            recipe,
        )
        manifest = msgspec.structs.replace(manifest, **said)
        size = sum(ref.length for ref in files)
        row = (model, number, profile, name, precision.value, layout.size, size, 10**6, None, encode(manifest))
        self.database.execute("INSERT INTO variants VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)", row)

    def train(self, model=MODEL, version=None, holdout="", **plan):
        """Start a training as the command does; its id."""
        newest = version or self.database.execute("SELECT MAX(version) FROM versions WHERE model=?", (model,)).fetchone()[0]
        return start_training(self.database, get_version(self.database, model, newest), Plan(**plan), holdout, self.clock.wall())

    def serve(self, steps=3):
        """A new server, as after a start of its process; it has looked around and announced."""
        database = self._open(busy=0.1)
        link = MemoryLink(self.broker, SERVER, clean_session=False)
        service = Service(database, self.blobs, link, self.online, wall=self.clock.wall, clock=self.clock.monotonic)
        link.subscribe(topics.ALL_UP)
        served = Served(self, service, database, link)
        try:
            served.turns(steps)
        except BaseException:
            served.kill()
            raise
        return served

    def device(self, name):
        """A connected scripted device."""
        return ToyDevice(self, name)

    def announced(self, profile, model=MODEL):
        """The version that devices of a profile are assigned, whose manifest is announced to them."""
        name = next(name for name in self.profiles if self.profiles[name] == profile)
        payload = decode(self.broker.retained[topics.assignment(name)], Signed)
        (one,) = decode(verify(payload, ASSIGNMENT, self.online.public_key), Assignment).models
        return decode(self.broker.retained[topics.manifest(model, profile, one.version)], Manifest).version

    def rows(self, sql, *values):
        """Rows of the database as tuples."""
        return [tuple(row) for row in self.database.execute(sql, values)]


def fleet_of_four(root):
    """A fleet of two wide and two narrow devices with one version."""
    fleet = ToyFleet(root)
    fleet.provision(a="big", b="big", c="small", d="small")
    fleet.push()
    return fleet


class Served:
    """A running server."""

    def __init__(self, fleet, service, database, link):
        """Wrap one."""
        self.fleet, self.service, self.database, self.link = fleet, service, database, link

    def turns(self, count=2, seconds=0.6):
        """Let the server's loop go round; time passes. What it says in one turn leaves in the next."""
        for _ in range(count):
            self.service._turn()
            self.fleet.clock.now += seconds

    def hear(self):
        """Handle what has arrived; no time passes."""
        self.service._turn()

    def answers(self, device, number, **options):
        """All receipts for an update that a device sends now."""
        device.receipts.clear()
        device.send(number, **options)
        self.turns()
        device.hear()
        return device.receipts

    def answer(self, device, number, **options):
        """The last of them, None without one."""
        return next(reversed(self.answers(device, number, **options)), None)

    def kill(self):
        """End it as SIGKILL does: nothing is written, nothing said, the connection breaks."""
        self.database.close()
        self.link.drop()

    @property
    def training(self):
        """The toy's training in memory."""
        return self.service._catalogue.trainings[MODEL]
