"""Boards that only answer: what is made for them, what they hold, and how rounds leave them alone."""

import os
import sys
import time
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest

import toyboard
from edgefl.compress.budget import Structure, candidates
from edgefl.device import hands
from edgefl.device.config import Bundle
from edgefl.device.model import Model
from edgefl.device.served import Shelf
from edgefl.examples import Examples
from edgefl.link.memory import MemoryBroker
from edgefl.plan import Plan
from edgefl.profile import Profile
from edgefl.server.founding import create_fleet
from edgefl.server.keys import online_signer
from edgefl.server.service import Service
from edgefl.server.status import fleet_status
from edgefl.server.variants import load_parent
from edgefl.store.blobs import BlobStore
from edgefl.store.database import open_database, transaction
from edgefl.store.documents import documents
from edgefl.store.fleet import Fleet
from edgefl.store.ledger import newest_weights, start_training
from edgefl.store.registry import Device, add_devices
from edgefl.store.versions import able_devices, get_variant, get_version
from edgefl.wire import topics

pytest.importorskip("torch")

from edgefl.export.models import load_factory
from edgefl.export.tensors import layout_of
from edgefl.server.push import PushRequest, push

MODEL = """
from torch import nn

class Window(nn.Sequential):
    input_shape = (3000,)

def plain():
    return Window(nn.Linear(3000, 4))
"""
ROOM = 80
"""KiB of a small board: less than three files of fp32 and two residuals, more than one file."""


def examples(count: int, seed: int) -> Examples:
    """Four classes around points that differ in the first tenth of their coordinates."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((4, 3000)).astype(np.float32)
    centres[:, 300:] = 0.0
    y = rng.integers(0, 4, count)
    return Examples(0.25 * centres[y] + rng.standard_normal((count, 3000)).astype(np.float32), y)


def board(name: str, kib: int, engine: str = "portable") -> Profile:
    """A profile with this much room."""
    described = {
        "name": name, "title": "a board", "soc": "a chip", "architecture": "x86_64", "cores": 4, "ram_mb": 4096,
        "storage_kib": kib, "memory_mb": 2048, "threads": 1, "link_kbps": 1000, "engine": engine, "sources": ["a data sheet"],
    }  # fmt: skip
    return msgspec.convert(described, Profile)


LEARNER, KIOSK = board("learner", 9999), board("kiosk", ROOM, "inference")


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """A new fleet with a board of each kind, and the model in the current directory."""
    (tmp_path / "windows.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "windows", raising=False)
    made = create_fleet(tmp_path / "fleet", name="test")
    with closing(open_database(made.database)) as database, transaction(database):
        add_devices(database, [Device("a", "learner", "01", 1.0), Device("b", "kiosk", "02", 1.0)])
    return made


class Scene:
    """A fleet's real server and one real agent for each device, in one thread, with a clock on a string."""

    def __init__(self, fleet: Fleet, root: Path) -> None:
        self.broker, self.now, self.passed = MemoryBroker(), time.time(), 0.0
        self.times = {"clock": lambda: self.passed, "wall": lambda: self.now + self.passed}
        link = self.broker.link("server", clean_session=False)
        link.subscribe(topics.ALL_UP)
        self.database = open_database(fleet.database, busy=0.1)
        self.service = Service(self.database, BlobStore(fleet.blobs), link, online_signer(fleet), **self.times)
        first, data = documents(self.database)["1.root"], examples(64, 5)
        self.bundles, self.agents = {}, {}
        for name, profile in (("a", LEARNER), ("b", KIOSK)):
            described = {"id": name, "profile": profile.name, "storage_kib": profile.storage_kib, "engine": profile.engine}
            agent = toyboard.real_board(root / name, first, self.broker, self.times, data.x, data.y, **described)
            agent._begin()
            self.agents[name] = agent
            self.bundles[name] = Bundle(root / name, agent._config)

    def run(self, until, turns=2000) -> None:
        """Let everybody work until something has happened."""
        for _ in range(turns):
            if until():
                return
            self.service._turn()
            for agent in self.agents.values():
                agent._turn()
            self.passed += 0.1
        raise AssertionError("it did not happen")

    def held(self, name: str) -> int:
        """The version that a device has activated; 0 for none."""
        model = self.agents[name]._models.get("windows")
        return model.session.active.version if model and model.session.active else 0

    def close(self) -> None:
        """End everybody."""
        for agent in self.agents.values():
            agent._hands.close()
        self.database.close()


@pytest.mark.slow
def test_a_board_that_only_answers_is_served_and_left_alone(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets what a board that trains could not hold, answers with it while others train, and learns with the next release."""
    monkeypatch.setattr(hands, "TrainerProcess", toyboard.InlineTrainer)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # processes die here, not the power
    request = PushRequest("windows", "windows:plain", batch=8)
    whole, served = push(fleet, request, (LEARNER, KIOSK), now=time.time())
    assert (whole.variant, served.variant) == ("w1-fp32", "w1-fp32")
    assert served.footprint == served.bytes <= served.budget < whole.footprint
    trained = candidates([Structure("w1", 1.0, layout_of(load_factory("windows:plain").build()))], {})
    assert min(one.footprint for one in trained) > served.budget
    assert served.step_ms == 0.0
    assert served.peak_bytes > 0
    scene = Scene(fleet, tmp_path)
    try:
        scene.run(lambda: scene.held("a") == scene.held("b") == 1)
        manifest = get_variant(scene.database, "windows", "kiosk", 1).manifest
        assert {ref.role for ref in manifest.files} == {"eval", "infer", "golden", "weights"}
        assert able_devices(scene.database, "windows", 1) == {"a"}
        model, x = Model(Shelf(scene.bundles["b"], "windows")), examples(9, 6).x
        version = get_version(scene.database, "windows", 1)
        blobs = BlobStore(fleet.blobs)
        first = load_parent(blobs, version.weights)
        np.testing.assert_allclose(model.predict(x).logits, answers(first, x), atol=1e-4)
        with closing(open_database(fleet.database)) as other:
            start_training(other, version, Plan(rounds=2, cohort=1, quorum=1, deadline=60.0, learning_rate=0.1), "", scene.now)
        scene.run(lambda: scene.database.execute("SELECT state FROM trainings").fetchone()[0] == "finished")
        trained = {row[0] for row in scene.database.execute("SELECT DISTINCT device FROM updates")}
        assert trained == {"a"}
        session = scene.agents["b"]._models["windows"].session
        assert (session.work, session.adopted, session.heard) == (None, b"", None)
        np.testing.assert_allclose(model.predict(x).logits, answers(first, x), atol=1e-4)
        said = {one.id: one for one in fleet_status(scene.database, "test").devices}
        assert (said["a"].trains, said["b"].trains) == (True, False)
        learned = load_parent(blobs, newest_weights(scene.database, version)[1])
        assert np.abs(learned - first).max() > 1e-3
        push(fleet, PushRequest("windows", "windows:plain", batch=8, trained=True), (LEARNER, KIOSK), now=scene.now)
        scene.run(lambda: scene.held("a") == scene.held("b") == 2)
        found = model.predict(x)
        assert found.version == 2
        np.testing.assert_allclose(found.logits, answers(learned, x), atol=1e-4)
    finally:
        scene.close()


def answers(vector: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What the model computes with these weights: 4 rows of 3000, then 4 biases."""
    return x @ vector[:12000].reshape(4, 3000).T + vector[12000:]
