"""The server when the disk is full or damaged or the database is held: it works on and loses nothing, and it never grows."""

import numpy as np
import pytest

import toyfleet as toy
from edgefl.wire import topics
from edgefl.wire.blocks import want
from toyupdates import MODEL, reference


@pytest.fixture
def fleet(tmp_path):
    """A fleet of two wide and two narrow devices with one version."""
    return toy.fleet_of_four(tmp_path)


def test_disk_and_memory_do_not_grow_with_the_rounds(fleet):
    """After many rounds the blob store, the offer and the stored updates are as large as after a few."""
    fleet.train(rounds=60, cohort=1)
    server, device = fleet.serve(), fleet.device("a")

    def sizes():
        held = sum(len(row[0]) for row in fleet.rows("SELECT data FROM updates"))
        return len(list(fleet.blobs.root.iterdir())), len(server.service._blocks._files), held

    seen = []
    for number in range(1, 41):
        device.send(number)
        server.turns()
        seen.append(sizes())
    assert server.training.state.number == 41
    assert all(max(column[30:]) <= max(column[20:30]) for column in zip(*seen, strict=True))  # how many differences pay varies


def test_damaged_blob_is_not_served_and_does_not_stop_the_server(fleet, caplog):
    """A file whose bytes have changed on disk is withdrawn with a line in the log; rounds go on."""
    fleet.train(rounds=3, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    ref = device.orders[-1].weights
    fleet.blobs.path(ref.sha256).write_bytes(b"\0" * ref.length)
    device.say("want", want(ref, [0]))
    server.turns(2)
    assert "damaged" in caplog.text
    assert not fleet.broker.published[topics.block(ref.sha256.hex())]
    device.send(1)
    server.turns()
    assert server.training.state.number == 2


def test_locked_database_gives_no_receipt_and_loses_nothing(fleet, caplog):
    """While another program holds the database no update is acknowledged; sent again later it counts once."""
    fleet.train(rounds=3, cohort=4)
    server, device = fleet.serve(), fleet.device("a")
    fleet.database.execute("BEGIN IMMEDIATE")
    device.send(1)
    server.turns(2)
    assert device.hear() is None
    assert "locked" in caplog.text
    fleet.database.rollback()
    device.send(1)
    server.turns()
    assert device.hear().stored
    assert fleet.rows("SELECT device, round FROM updates") == [("a", 1)]


def test_full_disk_leaves_the_round_open_until_there_is_room(fleet, monkeypatch, caplog):
    """A round whose weights cannot be written stays open with all its updates, and closes with the same result later."""
    import errno

    fleet.train(rounds=3, cohort=2)
    server, devices = fleet.serve(), [fleet.device(name) for name in "ac"]
    before = server.training.parent.copy()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        for device in devices:
            device.send(1)
        server.turns(3)
        assert server.training.state.number == 1
    assert "disk full" in caplog.text
    server.turns()
    assert server.training.state.number == 2
    np.testing.assert_allclose(
        server.training.parent, reference(before, [("a", "big", 1), ("c", "small", 1)], number=1), rtol=1e-6, atol=1e-7
    )


def test_training_that_cannot_be_read_costs_only_its_own_rounds(fleet, caplog):
    """With its weights gone a model's updates get no answer, another model trains on, and all is well when they are back."""
    fleet.push(model="other", seed=3)
    fleet.train(rounds=2, cohort=1)
    fleet.train(model="other", rounds=2, cohort=1)
    (sha256,) = next(iter(fleet.rows("SELECT weights FROM versions WHERE model='toy'")))
    path = fleet.blobs.path(sha256)
    content = path.read_bytes()
    path.unlink()
    server, device = fleet.serve(), fleet.device("a")
    assert "cannot be taken up" in caplog.text
    device.send(1)
    server.turns()
    assert device.hear() is None
    device.send(1, model="other")
    server.turns()
    assert device.hear().stored
    path.write_bytes(content)
    server.turns(2)
    device.send(1)
    server.turns()
    assert (device.hear().model, device.hear().stored) == (MODEL, True)
