"""A fleet in one process in which everything is real but the engine: agents and trainers, a server, a broker in memory.

The engine moves the weights a step towards the device's own target. The fleet has room for what the codec said of every update,
and computes the server's results again from that.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).
"""

import random
from contextlib import contextmanager

import numpy as np

import toyfleet as toy
from edgefl.aggregate.mean import polynomial_staleness
from edgefl.codec.weights import Precision
from edgefl.device import hands
from edgefl.device.agent import Agent
from edgefl.device.config import Bundle, DeviceConfig
from edgefl.device.voice import death
from edgefl.engine.contract import Evaluation, Trained
from edgefl.layout import Layout, Tensor
from edgefl.link.memory import MemoryLink
from edgefl.store.documents import documents
from toytrainer import InlineTrainer
from toyupdates import MODEL

LAYOUT = Layout((Tensor("a.weight", (60, 80)), Tensor("a.bias", (60,)), Tensor("b.weight", (10, 60))))
VARIANTS = {"big": ("w1-fp32", LAYOUT, Precision.FP32), "small": ("w1-fp16", LAYOUT, Precision.FP16)}
DEVICES = {"a": "big", "b": "big", "c": "small"}
PLAN = {"rounds": 14, "cohort": 3, "quorum": 2, "deadline": 5.0, "sparsity": 0.05, "bits": 3, "staleness": 3}


class Drifting:
    """An engine that moves every weight by a fifth of its way to the device's target; few of them have far to go."""

    layout = LAYOUT
    target = 0.0

    def __init__(self, *_, **__):
        self._vector = np.zeros(LAYOUT.size, dtype=np.float32)

    def set_vector(self, vector):
        """Keep it."""
        self._vector = vector.copy()

    def vector(self):
        """Give it back."""
        return self._vector

    def train(self, examples, *_, **__):
        """One step; the data's first value names the device's own part of the target."""
        shared = np.random.default_rng(1).standard_cauchy(LAYOUT.size)
        own = np.random.default_rng(int(examples.x[0, 0])).normal(size=LAYOUT.size)
        goal = np.clip(shared, -20, 20) + 0.1 * own
        self._vector = (self._vector + 0.2 * (goal - self._vector)).astype(np.float32)
        return Trained(1, 2.0, float(np.abs(goal - self._vector).mean()))

    def predict(self, x):
        """Its first weight, whatever is asked: enough for a trial."""
        return np.full((len(x), 4), self._vector[0], dtype=np.float32)

    def evaluate(self, examples):
        """As good as any."""
        return Evaluation(0.5, 0.5, len(examples))


class Device:
    """A board with a state directory; its agent comes and goes."""

    def __init__(self, fleet, root, name, number):
        self.fleet, self.name, self.root = fleet, name, root / name
        self.root.mkdir()
        (self.root / "root.json").write_bytes(documents(fleet.database)["1.root"])
        data = self.root / "data.npz"
        x = np.full((4 + number, 10), number, dtype=np.float32)
        np.savez(data, x=x, y=np.zeros(len(x), dtype=np.int64))
        self.config = DeviceConfig(
            id=name, profile=DEVICES[name], engine="portable", threads=1, memory_mb=512, storage_kib=1024, host="localhost",
            port=1, fleet=fleet.id, data=f"npz:{data}",
        )  # fmt: skip
        self.starts = 0
        self.start()

    def start(self):
        """Begin anew with what is on disk."""
        self.starts += 1
        (self.root / "state").mkdir(exist_ok=True)
        clock = self.fleet.clock
        self.link = MemoryLink(self.fleet.broker, self.name, will=death(self.name, self.starts))
        rng = random.Random(self.starts)
        bundle = Bundle(self.root, self.config)
        self.agent = Agent(bundle, self.link, self.starts, clock=clock.monotonic, wall=clock.wall, rng=rng)
        self.agent._begin()

    def die(self):
        """Sudden death; the system takes back what the process had open."""
        if self.agent is not None:
            self.agent._hands.close()
            self.link.drop()
            self.agent = None

    @property
    def folder(self):
        """Where the model's state is."""
        return self.root / "state" / "models" / MODEL

    def weights_files(self):
        """How many weights files lie on the disk."""
        length = max(f.stat().st_size for f in (self.root / "state" / "blobs").iterdir())
        return sum(f.stat().st_size == length for f in (self.root / "state" / "blobs").iterdir())


class Fleet(toy.ToyFleet):
    """Server and devices, and what the codec said of every update."""

    wide, variants = LAYOUT, VARIANTS

    def __init__(self, root):
        root.mkdir(exist_ok=True)
        super().__init__(root)
        self.provision(**DEVICES)
        self.push()
        self.made, self.deltas = {}, {}
        self.server = None
        self.devices = {name: Device(self, root, name, number) for number, name in enumerate(DEVICES)}

    def turn(self, seconds=0.1):
        """One turn of everybody who is there; time passes."""
        if self.server:
            self.server.service._turn()
        for device in self.devices.values():
            if device.agent:
                device.agent._turn()
        self.clock.now += seconds

    def until(self, happened, turns=4000):
        """Let time pass until something has happened."""
        for _ in range(turns):
            if happened():
                return self
            self.turn()
        raise AssertionError("it did not happen")

    def round(self):
        """The open round, or one beyond the last when all are over."""
        (number, state) = self.rows("SELECT MAX(r.round), t.state FROM rounds r JOIN trainings t ON t.id=r.training")[0]
        return number + (state == "finished")

    def reach(self, number):
        """Until this round is open."""
        return self.until(lambda: self.round() >= number)

    def updates(self):
        """Rows of all updates, in the order in which they were stored."""
        names = "device", "round", "counted", "before", "length", "samples", "sha256"
        rows = self.rows("SELECT device, round, counted, before, length, samples, sha256 FROM updates ORDER BY rowid")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def reference(self, start):
        """The parent computed from what the codec said of the updates that were counted."""
        parent = start.astype(np.float64)
        for number in sorted({u["counted"] for u in self.updates() if u["counted"]}):
            total = weight = 0.0
            for update in self.updates():
                if update["counted"] == number:
                    share = update["samples"] * polynomial_staleness(number - update["round"])
                    total += share * self.made[update["sha256"]].sent.dense().astype(np.float64)
                    weight += share
            parent = (parent + total / weight).astype(np.float32).astype(np.float64)
        return parent


@contextmanager
def playing(monkeypatch, make):
    """A fleet, as `make` makes it, on the scripted engine; its boards and its server end with the block."""
    monkeypatch.setattr(hands, "TrainerProcess", InlineTrainer)
    monkeypatch.setattr("edgefl.device.trainer.open_engine", Drifting)
    fleet = make()
    try:
        yield fleet
    finally:
        for device in fleet.devices.values():
            device.die()
        if fleet.server:
            fleet.server.kill()
