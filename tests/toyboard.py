"""A toy board for the device's tests: one agent that can die, its world on a broker in memory, and a clock on a string.

Its server is `toyoffice`'s; a test that wants its engine scripted puts `toytrainer`'s in place (`toyagent.scripted`).

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).
"""

import hashlib
import random

import msgspec
import numpy as np

from edgefl.device.agent import Agent
from edgefl.device.config import Bundle, DeviceConfig
from edgefl.device.voice import death
from edgefl.link.memory import MemoryLink
from edgefl.link.memory_broker import MemoryBroker
from edgefl.store.outbox import read_residual
from toyclock import START, Clock
from toyoffice import DEVICE, MODEL, PROFILE, Office
from toytrainer import LAYOUT


class PowerCut(BaseException):
    """The board has no power: nothing catches this."""


def real_board(directory, root, broker, times, x, y, **config):
    """An agent of a fleet's real server, with these examples; `times` are its clocks, `config` the rest of its description."""
    (directory / "state").mkdir(parents=True)
    (directory / "root.json").write_bytes(root)
    np.savez(directory / "data.npz", x=x, y=y)
    described = DeviceConfig(
        threads=1, memory_mb=512, host="localhost", port=1, fleet=hashlib.sha256(root).hexdigest(),
        data=f"npz:{directory / 'data.npz'}", **{"engine": "portable", **config},
    )  # fmt: skip
    name = described.id
    return Agent(Bundle(directory, described), MemoryLink(broker, name, will=death(name, 1)), 1, rng=random.Random(1), **times)


class Board:
    """A board with a state directory; its agent can be lost and started again.

    Attributes:
        agent, link: of the present start.
        config, connect: may be replaced before a start; `connect` makes a link of the broker, an identity and options.
    """

    def __init__(self, root, *, clock=None, broker=None, connect=MemoryLink):
        """A board, its world and its data."""
        root.mkdir(parents=True, exist_ok=True)
        self.root, self.clock, self.connect = root, clock or Clock(), connect
        self.broker = broker or MemoryBroker(random.Random(0))
        self.office = Office(self.broker, self.clock, connect)
        rng = np.random.default_rng(0)
        (root / "root.json").write_bytes(self.office.documents["1.root"])
        np.savez(root / "data.npz", x=rng.normal(size=(8, 5)).astype(np.float32), y=rng.integers(0, 3, 8))
        self.config = DeviceConfig(
            id=DEVICE, profile=PROFILE, engine="portable", threads=1, memory_mb=512, storage_kib=1024, host="localhost", port=1,
            fleet=self.office.fleet, data=f"npz:{root / 'data.npz'}",
        )  # fmt: skip
        self.starts = 0
        self.agent = self.link = None

    @property
    def state(self):
        """The state directory."""
        return self.root / "state"

    @property
    def folder(self):
        """Where the model's state is."""
        return self.state / "models" / MODEL

    @property
    def model(self):
        """The model as the agent holds it."""
        return self.agent._models[MODEL]

    @property
    def session(self):
        """What the model's machine knows."""
        return self.model.session

    def belong(self, now=START):
        """Become a device of a fleet that is founded now."""
        self.office.found(now)
        self.config = msgspec.structs.replace(self.config, fleet=self.office.fleet)
        (self.root / "root.json").write_bytes(self.office.documents["1.root"])

    def start(self):
        """Begin anew with what is on disk."""
        self.starts += 1
        self.state.mkdir(exist_ok=True)  # or a link to a directory elsewhere
        self.link = self.connect(self.broker, DEVICE, will=death(DEVICE, self.starts))
        bundle = Bundle(self.root, self.config)
        self.agent = Agent(
            bundle, self.link, self.starts, clock=self.clock.monotonic, wall=self.clock.wall, rng=random.Random(self.starts)
        )
        self.agent._begin()
        return self

    def run(self, until, turns=600, seconds=0.05):
        """Let agent and server work, `seconds` a turn, until something has happened."""
        for _ in range(turns):
            self.turn(seconds)
            if until():
                return self
        raise AssertionError(f"it did not happen: {self.office.steps()[-5:]} {self.office.errors()[-3:]}")

    def turn(self, seconds=0.05):
        """One turn of everybody."""
        self.agent._turn()
        self.office.turn()
        self.clock.now += seconds

    def turns(self, count, seconds=0.05):
        """Let some turns pass."""
        for _ in range(count):
            self.turn(seconds)
        return self

    def lose(self):
        """Sudden death; the system takes back what the process had open."""
        self.agent._hands.close()
        self.link.drop()
        self.agent = self.link = None

    def residual(self):
        """What is kept for the next round."""
        kept = read_residual(self.folder / "settled")
        return np.zeros(LAYOUT.size) if kept is None else np.frombuffer(kept[1], "<f4").astype(float)

    def active(self):
        """Number of the active version, 0 for none."""
        model = self.agent._models.get(MODEL)
        return model.session.active.version if model and model.session.active else 0
