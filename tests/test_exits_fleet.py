"""Two boards that hold different depths of one model: pushed, fetched, trained, aggregated where each lies in the parent."""

import hashlib
import importlib.util
import os
import random
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from edgefl.device import hands
from edgefl.device.agent import Agent
from edgefl.device.config import Bundle, DeviceConfig
from edgefl.device.voice import death
from edgefl.link.memory import MemoryBroker
from edgefl.plan import Plan
from edgefl.profile import Profile
from edgefl.recipe import Recipe
from edgefl.server.founding import create_fleet
from edgefl.server.keys import online_signer
from edgefl.server.service import Service
from edgefl.server.variants import load_parent, load_variants
from edgefl.store.blobs import BlobStore
from edgefl.store.database import open_database, transaction
from edgefl.store.documents import documents
from edgefl.store.ledger import start_training
from edgefl.store.registry import Device, add_devices
from edgefl.store.versions import get_version
from edgefl.wire import topics

pytest.importorskip("torch")

from edgefl.server.push import PushRequest, push

MODEL = """
import torch
from torch import nn

class Stairs(nn.Module):
    input_shape = (6,)

    def __init__(self, *, exits=2):
        super().__init__()
        self.stages = nn.ModuleList([nn.Linear(6, 48), nn.Linear(48, 8)][:exits])
        self.exits = nn.ModuleList([nn.Linear(48, 3), nn.Linear(8, 3)][:exits])

    def forward(self, x):
        logits = []
        for stage, last in zip(self.stages, self.exits):
            x = stage(x).relu()
            logits.append(last(x))
        return torch.stack(logits, 1)
"""
ROOM = {"deep": 60, "flat": 12}
"""KiB of each kind of board."""


def inline_trainer():
    """A trainer in this process."""
    spec = importlib.util.spec_from_file_location("toyboard", Path(__file__).with_name("toyboard.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.InlineTrainer


class Clock:
    """Today, and time that passes when the test says so."""

    def __init__(self):
        self.now, self.begin = 0.0, time.time()

    def wall(self):
        """Seconds since 1970."""
        return self.begin + self.now

    def monotonic(self):
        """Seconds since the test began."""
        return self.now


def profile(name):
    """A profile with this much room."""
    return Profile(
        name=name, title="a board", soc="a chip", architecture="x86_64", cores=4, ram_mb=4096, storage_kib=ROOM[name],
        memory_mb=2048, threads=1, link_kbps=1000, engine="portable", sources=("a data sheet",), reason="",
    )  # fmt: skip


class Stage:
    """A fleet of one board of each kind, and a model of two exits pushed to it."""

    def __init__(self, path):
        self.path, self.clock = path, Clock()
        self.fleet = create_fleet(path / "fleet", name="test")
        self.blobs = BlobStore(self.fleet.blobs)
        with closing(open_database(self.fleet.database)) as database, transaction(database):
            add_devices(database, [Device(name, name, f"{place:02d}", self.clock.wall()) for place, name in enumerate(ROOM, 1)])
        request = PushRequest("stairs", "stairs:Stairs", batch=8, recipe=Recipe("self-distillation"))
        self.pushed = push(self.fleet, request, [profile(name) for name in ROOM], now=self.clock.wall())

    def trained(self, boards):
        """The parent's change by name of tensor after a round in which these boards take part, from the version as pushed."""
        with closing(open_database(self.fleet.database, busy=0.1)) as database:
            plan = Plan(rounds=1, cohort=len(boards), quorum=len(boards), deadline=60.0, sparsity=1.0, bits=8)
            version = get_version(database, "stairs", 1)
            start_training(database, version, plan, "", self.clock.wall())
            database.execute("UPDATE trainings SET first=1") if False else None
            result = self._run(database, boards)
            before, after = load_parent(self.blobs, version.weights), load_parent(self.blobs, result)
            return version.layout.views(after - before)

    def _run(self, database, boards):
        root, broker = documents(database)["1.root"], MemoryBroker()
        link = broker.link("server", clean_session=False)
        link.subscribe(topics.ALL_UP)
        times = {"wall": self.clock.wall, "clock": self.clock.monotonic}
        service = Service(database, self.blobs, link, online_signer(self.fleet), **times)
        agents = [self._agent(name, root, broker, times) for name in boards]
        try:
            for _ in range(3000):
                service._turn()
                for agent in agents:
                    agent._turn()
                self.clock.now += 0.1
                if database.execute("SELECT state FROM trainings").fetchone()[0] == "finished":
                    break
        finally:
            for agent in agents:
                agent._hands.close()
        return database.execute("SELECT result FROM rounds").fetchone()[0]

    def _agent(self, name, root, broker, times):
        state = self.path / name
        (state / "state").mkdir(parents=True)
        (state / "root.json").write_bytes(root)
        rng = np.random.default_rng(len(name) + ord(name[0]))
        x, y = rng.standard_normal((64, 6)).astype(np.float32), rng.integers(0, 3, 64)
        np.savez(state / "data.npz", x=x, y=y)
        config = DeviceConfig(
            id=name, profile=name, engine="portable", threads=1, memory_mb=512, storage_kib=ROOM[name], host="localhost", port=1,
            fleet=hashlib.sha256(root).hexdigest(), data=f"npz:{state / 'data.npz'}",
        )  # fmt: skip
        agent = Agent(Bundle(state, config), broker.link(name, will=death(name, 1)), 1, rng=random.Random(1), **times)
        agent._begin()
        return agent


@pytest.mark.slow
def test_shared_layers_learn_from_both_depths_and_the_last_from_the_deep_board_alone(tmp_path, monkeypatch):
    """One round with both boards, and the same with each alone: the mean where both have a tensor, the deep one's elsewhere."""
    (tmp_path / "stairs.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "stairs", raising=False)
    monkeypatch.setattr(hands, "TrainerProcess", inline_trainer())
    monkeypatch.setattr(os, "fsync", lambda _: None)  # processes die here, not the power
    Stage(tmp_path / "x")
