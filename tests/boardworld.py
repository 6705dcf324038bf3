"""A real server and real boards in one process over a broker in memory; each can be lost and started again.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).
"""

import random
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edgefl.device.agent import Agent
from edgefl.device.config import Bundle, load_bundle
from edgefl.device.voice import death
from edgefl.link.memory import MemoryLink
from edgefl.link.memory_broker import MemoryBroker
from edgefl.plan import Plan
from edgefl.server.keys import online_signer
from edgefl.server.service import Service
from edgefl.store.blobs import BlobStore
from edgefl.store.fleet import Fleet
from edgefl.store.ledger import start_training
from edgefl.store.versions import latest_version
from edgefl.wire import topics

MODEL = "mnist-2nn"


@dataclass
class World:
    """A server and boards that can be lost and started again."""

    root: Path
    database: sqlite3.Connection
    broker: MemoryBroker
    server: Service | None = None
    agents: dict[str, Agent] = field(default_factory=dict)
    links: dict[str, MemoryLink] = field(default_factory=dict)
    starts: int = 0

    @property
    def fleet(self) -> Fleet:
        """The fleet."""
        return Fleet.open(self.root / "fleet")

    def bundle(self, name: str) -> Bundle:
        """A device's bundle."""
        return load_bundle(self.root / "bundles" / name)

    def serve(self) -> Service:
        """Start the server, anew if there was one."""
        link = MemoryLink(self.broker, "edgefl-server")
        self.server = Service(self.database, BlobStore(self.fleet.blobs), link, online_signer(self.fleet))
        link.subscribe(topics.ALL_UP)
        return self.server

    def board(self, name: str) -> Agent:
        """Start a board, anew if there was one; its state directory stays."""
        self.starts += 1
        bundle = self.bundle(name)
        bundle.state.mkdir(exist_ok=True)
        link = self.links[name] = MemoryLink(self.broker, name, will=death(name, self.starts))
        agent = self.agents[name] = Agent(bundle, link, self.starts, rng=random.Random(self.starts))
        agent._following.begin()
        link.subscribe(topics.receipt(name))
        for model in agent._models.values():
            agent._hands.follow_orders(model)
            model.retry_at = 0.0
        return agent

    def lose(self, name: str) -> None:
        """The board loses power: its connection drops, its trainer dies, nothing is tidied up."""
        agent = self.agents.pop(name)
        agent._hands.close()
        self.links.pop(name).drop()

    def turn(self) -> None:
        """Everybody does what there is to do, without waiting long."""
        if self.server:
            self.server._turn()
        for agent in tuple(self.agents.values()):
            agent._wait = lambda: 0.0  # type: ignore[method-assign]  # the memory link does not sleep anyway
            agent._turn()
        time.sleep(0.002)

    def until(self, reached: Callable[[], object], seconds: float = 120.0) -> None:
        """Turn until something has happened."""
        deadline = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < deadline, "it did not happen"
            self.turn()

    def train(self, rounds: int, cohort: int = 2) -> None:
        """Start a training."""
        plan = Plan(rounds=rounds, cohort=cohort, quorum=cohort, epochs=1, learning_rate=0.05)
        start_training(self.database, latest_version(self.database, MODEL), plan, "", time.time())

    def counted(self) -> list[tuple[str, int, int | None]]:
        """Device, round and the round it was counted in, of every stored update."""
        return [tuple(row) for row in self.database.execute("SELECT device, round, counted FROM updates ORDER BY round, device")]

    def holds(self, name: str) -> bool:
        """Whether a board has an active version."""
        models = self.agents[name]._models
        return MODEL in models and models[MODEL].session.active is not None

    def finished(self) -> bool:
        """Whether the newest training has ended."""
        return self.database.execute("SELECT state FROM trainings ORDER BY id DESC").fetchone()[0] == "finished"
