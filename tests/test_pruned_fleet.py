"""A pruned variant on its way round: pushed, fetched by a board, trained there, aggregated where it lies in the parent."""

import os
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
from toyclock import Today
from toytrainer import InlineTrainer

pytest.importorskip("torch")

from edgefl.server.push import PushRequest, push

MODEL = """
from torch import nn

class Window(nn.Sequential):
    input_shape = (6,)

def plain():
    return Window(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 3))
"""


def board(kib):
    """A profile with this much room."""
    return Profile(
        name="small", title="a board", soc="a chip", architecture="x86_64", cores=4, ram_mb=4096, storage_kib=kib, memory_mb=2048,
        threads=1, link_kbps=1000, engine="portable", sources=("a data sheet",), reason="",
    )  # fmt: skip


@pytest.mark.slow
def test_a_pruned_variant_is_trained_and_aggregated(tmp_path, monkeypatch):
    """Two rounds, the server dies between them: what the board learns lands in the rows that its variant kept, nowhere else."""
    (tmp_path / "windows.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "windows", raising=False)
    monkeypatch.setattr(hands, "TrainerProcess", InlineTrainer)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # processes die here, not the power
    fleet, clock, broker = create_fleet(tmp_path / "fleet", name="test"), Today(), MemoryBroker()
    blobs = BlobStore(fleet.blobs)
    with closing(open_database(fleet.database)) as database, transaction(database):
        add_devices(database, [Device("a", "small", "01", clock.wall())])
    (pushed,) = push(fleet, PushRequest("windows", "windows:plain", batch=8), (board(24),), now=clock.wall())
    assert pushed.variant.startswith("p")
    with closing(open_database(fleet.database)) as database:
        version = get_version(database, "windows", 1)
        view = load_variants(database, version, blobs)[pushed.variant]
        plan = Plan(rounds=2, cohort=1, quorum=1, deadline=60.0, sparsity=0.5, bits=4)
        start_training(database, version, plan, "", clock.wall())
        root = documents(database)["1.root"]
    before = load_parent(blobs, version.weights)

    def serve():
        database = open_database(fleet.database, busy=0.1)
        link = MemoryLink(broker, "server", clean_session=False)
        link.subscribe(topics.ALL_UP)
        return database, link, Service(database, blobs, link, online_signer(fleet), wall=clock.wall, clock=clock.monotonic)

    times = {"wall": clock.wall, "clock": clock.monotonic}
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((64, 6)).astype(np.float32), rng.integers(0, 3, 64)
    agent = toyboard.real_board(tmp_path / "board", root, broker, times, x, y, id="a", profile="small", storage_kib=24)
    database, link, service = serve()
    agent._begin()
    restarted = False
    try:
        for _ in range(3000):
            service._turn()
            agent._turn()
            clock.now += 0.1
            (over,) = database.execute("SELECT COUNT(*) FROM rounds WHERE closed IS NOT NULL").fetchone()
            if over == 1 and not restarted:
                database.close()
                link.drop()
                database, link, service = serve()
                restarted = True
            if database.execute("SELECT state FROM trainings").fetchone()[0] == "finished":
                break
        results = [row[0] for row in database.execute("SELECT result FROM rounds ORDER BY round")]
    finally:
        agent._hands.close()
        database.close()
    assert restarted
    assert len(results) == 2
    outside = np.ones(version.layout.size, dtype=bool)
    outside[view.index] = False
    assert outside.any()
    after = load_parent(blobs, results[-1])
    np.testing.assert_array_equal(after[outside], before[outside])
    assert np.count_nonzero(after[view.index] != before[view.index]) > 0.4 * view.layout.size
