"""Boards that hold different depths of one model, one of them pruned: pushed, fetched, trained, aggregated where each lies."""

import os
import shutil
import sys
from contextlib import closing

import numpy as np
import pytest

import toyboard
from edgefl.device import hands
from edgefl.link.memory import MemoryLink
from edgefl.link.memory_broker import MemoryBroker
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
from edgefl.store.fleet import Fleet
from edgefl.store.ledger import start_training
from edgefl.store.registry import Device, add_devices
from edgefl.store.versions import get_version
from edgefl.wire import topics
from toyclock import Today
from toytrainer import InlineTrainer

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
ROOM = {"deep": 60, "flat": 12, "slim": 9}
"""KiB of each kind of board."""


def profile(name):
    """A profile with this much room."""
    return Profile(
        name=name, title="a board", soc="a chip", architecture="x86_64", cores=4, ram_mb=4096, storage_kib=ROOM[name],
        memory_mb=2048, threads=1, link_kbps=1000, engine="portable", sources=("a data sheet",), reason="",
    )  # fmt: skip


def created(path, clock):
    """A fleet of one board of each kind, to which the model has been pushed; and the variant of each."""
    fleet = create_fleet(path, name="test")
    with closing(open_database(fleet.database)) as database, transaction(database):
        add_devices(database, [Device(name, name, f"{place:02d}", clock.wall()) for place, name in enumerate(ROOM, 1)])
    request = PushRequest("stairs", "stairs:Stairs", batch=8, recipe=Recipe("self-distillation", mutual=True))
    return fleet, {one.profile: one.variant for one in push(fleet, request, [profile(n) for n in ROOM], now=clock.wall())}


def agent(name, directory, root, broker, times):
    """A board with data of its own."""
    rng = np.random.default_rng(ord(name[0]))
    x, y = rng.standard_normal((64, 6)).astype(np.float32), rng.integers(0, 3, 64)
    made = toyboard.real_board(directory, root, broker, times, x, y, id=name, profile=name, storage_kib=ROOM[name])
    made._begin()
    return made


def change(fleet, boards, clock):
    """By how much the parent is another after a round in which these boards take part, flat."""
    blobs, broker, times = BlobStore(fleet.blobs), MemoryBroker(), {"wall": clock.wall, "clock": clock.monotonic}
    with closing(open_database(fleet.database, busy=0.1)) as database:
        plan = Plan(
            rounds=1, cohort=len(boards), quorum=len(boards), deadline=600.0, sparsity=1.0, bits=8, learning_rate=0.5, ramp=2
        )
        start_training(database, get_version(database, "stairs", 1), plan, "", clock.wall())
        link = MemoryLink(broker, "server", clean_session=False)
        link.subscribe(topics.ALL_UP)
        service = Service(database, blobs, link, online_signer(fleet), **times)
        root = documents(database)["1.root"]
        agents = [agent(name, fleet.path / "boards" / name, root, broker, times) for name in boards]
        try:
            for _ in range(3000):
                service._turn()
                for one in agents:
                    one._turn()
                clock.now += 0.1
                if database.execute("SELECT state FROM trainings").fetchone()[0] == "finished":
                    break
        finally:
            for one in agents:
                one._hands.close()
        (result,) = database.execute("SELECT result FROM rounds").fetchone()
        return load_parent(blobs, result) - load_parent(blobs, get_version(database, "stairs", 1).weights)


@pytest.mark.slow
def test_every_coordinate_learns_from_the_boards_that_hold_it(tmp_path, monkeypatch):
    """A round with each board alone, one with all: the last layers change by what the deep one learns, others by means."""
    (tmp_path / "stairs.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "stairs", raising=False)
    monkeypatch.setattr(hands, "TrainerProcess", InlineTrainer)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # processes die here, not the power
    clock = Today()
    fleet, variants = created(tmp_path / "fleet", clock)
    kinds = {"deep": "w1-", "flat": "d1w1-", "slim": "d1p"}
    assert all(variants[board].startswith(kind) for board, kind in kinds.items())
    with closing(open_database(fleet.database)) as database:
        version = get_version(database, "stairs", 1)
        views = load_variants(database, version, BlobStore(fleet.blobs))
    holds = {board: np.isin(np.arange(version.layout.size), views[variants[board]].index) for board in ROOM}
    first = [t.name.split(".")[1] == "0" for t, place in version.layout.slices() for _ in range(place.start, place.stop)]
    np.testing.assert_array_equal(holds["flat"], first)
    assert 0 < np.count_nonzero(holds["slim"]) < np.count_nonzero(holds["flat"])
    assert not (holds["slim"] & ~holds["flat"]).any()
    changes = {}
    for boards in (("deep",), ("flat",), ("slim",), tuple(ROOM)):
        copy = shutil.copytree(fleet.path, tmp_path / "-".join(boards))
        changes["-".join(boards)] = change(Fleet.open(copy), boards, clock)
    together = changes.pop("-".join(ROOM))
    for board, alone in changes.items():
        assert not alone[~holds[board]].any()
        assert np.count_nonzero(alone[holds[board]]) > 0.3 * np.count_nonzero(holds[board])
    np.testing.assert_array_equal(together[~holds["flat"]], changes["deep"][~holds["flat"]])
    cover = sum(held.astype(np.float64) for held in holds.values())
    np.testing.assert_allclose(together, sum(changes.values()) / cover, atol=1e-6)
