"""The downlink in one process: a server that sends little, boards that put it together, rounds that were missed, and damage.

Real agents, a real server and a broker in memory; the engine is scripted (`updatepath`).
"""

from itertools import pairwise

import numpy as np
import pytest

import updatepath as path
from edgefl.codec.moves import GRID
from edgefl.codec.weights import Precision, decode_weights
from edgefl.errors import StoreError
from edgefl.link.contract import Arrived
from edgefl.link.memory import MemoryLink
from edgefl.server.downlink import REACH
from edgefl.server.variants import load_parent
from edgefl.store.blobs import BlobStore
from edgefl.wire import topics
from toyupdates import MODEL

PLAN = {**path.PLAN, "rounds": 6, "downlink_sparsity": 0.05}


class World(path.Fleet):
    """The fleet, and a listener that writes down which files the server sends."""

    def __init__(self, root):
        """All devices are there; no server yet."""
        super().__init__(root)
        self.sent = set()  # topics of files
        self._ear = MemoryLink(self.broker, "listener")
        self._ear.subscribe(topics.block("+"))

    def turn(self, seconds=0.1):
        """One turn of everybody."""
        super().turn(seconds)
        for event in self._ear.poll(0.0):
            if isinstance(event, Arrived):
                self.sent.add(event.topic)

    def whole(self):
        """The weights files that were sent as wholes, the version's own left out."""
        own = {ref.sha256 for record in self.server.service._catalogue.announced for ref in record.manifest.files}
        rounds = {sha256 for (sha256,) in self.rows("SELECT weights FROM offers")}
        rounds |= {ref.sha256 for ref in self.server.training.offer.files.values()}
        return {sha256 for sha256 in rounds - own if topics.block(sha256.hex()) in self.sent}


@pytest.fixture(params=[Precision.INT4, Precision.TERNARY, Precision.CODEBOOK])
def at_rest(request, monkeypatch):
    """The variants of the fleet that is made next have one of these precisions."""
    for name, (_, layout, _) in list(path.VARIANTS.items()):
        monkeypatch.setitem(path.VARIANTS, name, (f"w1-{request.param}", layout, request.param))
    return request.param


@pytest.fixture
def fleet(tmp_path, monkeypatch):
    """Three boards, two of one variant, in a world that is listened to."""
    with path.playing(monkeypatch, lambda: World(tmp_path / "fleet")) as fleet:
        yield fleet


def session(device):
    """What a device's machine knows."""
    return device.agent._models[MODEL].session


def settle(fleet):
    """Until every device that is there holds what the server offers last."""
    offer = fleet.server.training.offer.files
    there = [device for device in fleet.devices.values() if device.agent]
    fleet.until(lambda: all(session(d).adopted == offer[session(d).active.variant].sha256 for d in there))


def check(fleet):
    """Every device that is there holds what the server says that devices hold, to the last bit."""
    training = fleet.server.training
    for device in fleet.devices.values():
        manifest = session(device).active
        variant = training._variants[manifest.variant]
        data = (device.root / "state" / "blobs" / session(device).adopted.hex()).read_bytes()
        np.testing.assert_array_equal(decode_weights(data, manifest.layout), variant.as_received(training.held))


def test_weights_come_as_differences_and_are_what_the_server_says(fleet):
    """A whole training with not one whole weights file on the way; what changes in a round is the plan's share at most."""
    fleet.train(**PLAN)
    fleet.server = fleet.serve(steps=1)
    held = [fleet.server.training.held]
    for number in range(2, PLAN["rounds"] + 1):
        fleet.reach(number)
        held.append(fleet.server.training.held)
    settle(fleet)
    check(fleet)
    assert fleet.whole() == set()
    for one, other in pairwise(held):
        assert 0 < np.count_nonzero(one != other) <= 0.05 * len(one) + 1


def test_weights_at_rest_can_be_trained_and_travel_whole(at_rest, fleet, caplog):
    """Several rounds in int4 at the coarsest, without differences: devices hold what the server says, and nothing complains."""
    fleet.train(**{**PLAN, "rounds": 3})
    fleet.server = fleet.serve(steps=1)
    fleet.reach(3)
    settle(fleet)
    check(fleet)
    assert fleet.server.training._variants[f"w1-{at_rest}"].precision == Precision.INT4
    assert not any(fleet.server.training.offer.differences.values())
    assert not [record for record in caplog.records if "no difference" in record.message]


def test_the_final_weights_are_nearly_the_parent(fleet):
    """After the last round devices get everything but fractions of a step, and the next training goes on from what they hold."""
    fleet.train(**PLAN)
    fleet.server = fleet.serve(steps=1)
    fleet.reach(PLAN["rounds"])
    before = fleet.server.training
    missing = np.abs(before.parent - before.held).max()
    fleet.reach(PLAN["rounds"] + 1)
    settle(fleet)
    check(fleet)
    training = fleet.server.training
    assert training.state.finished
    assert 0 < np.abs(training.parent - training.held).max() < 0.5 * missing
    parent, held = training.parent, training.held
    fleet.train(**PLAN)
    fleet.until(lambda: fleet.server.training.state.number == PLAN["rounds"] + 1)
    np.testing.assert_array_equal(fleet.server.training.parent, parent)
    np.testing.assert_array_equal(fleet.server.training.held, held)
    fleet.reach(PLAN["rounds"] + 3)
    settle(fleet)
    assert fleet.whole() == set()


def test_a_device_that_missed_rounds_gets_one_partial_sum(fleet):
    """Away for three rounds while the server is started anew, a device comes back with a single difference."""
    fleet.train(**PLAN | {"rounds": 9, "deadline": 1.0})
    fleet.server = fleet.serve(steps=1)
    fleet.reach(3)
    lost = fleet.devices["a"]
    fleet.until(lambda: session(lost).adopted == fleet.server.training.offer.files["w1-fp32"].sha256)
    base = session(lost).adopted
    lost.die()
    fleet.reach(5)
    fleet.server.kill()
    fleet.server = fleet.serve(steps=1)
    fleet.reach(6)
    lost.start()
    fleet.until(lambda: session(lost).work is not None and session(lost).work.order is not None and session(lost).work.difference)
    assert session(lost).work.round > 5
    assert session(lost).work.difference.base == base
    fleet.until(lambda: session(lost).adopted != base)
    fleet.reach(10)
    settle(fleet)
    check(fleet)
    assert fleet.whole() == set()


def test_a_device_that_was_away_for_longer_starts_from_its_version(fleet):
    """Beyond the reach there is still the way from the weights that came with the version, if it is worth it."""
    fleet.train(**PLAN | {"rounds": 2 * REACH, "deadline": 0.5, "downlink_sparsity": 0.01, "context": False})
    fleet.server = fleet.serve(steps=1)
    fleet.reach(3)
    lost = fleet.devices["a"]
    fleet.until(lambda: session(lost).adopted == fleet.server.training.offer.files["w1-fp32"].sha256)
    lost.die()
    fleet.reach(2 * REACH - 1)
    lost.start()
    fleet.until(lambda: session(lost).work is not None and session(lost).work.difference)
    assert session(lost).work.difference.base == session(lost).active.file("weights").sha256
    fleet.reach(2 * REACH + 1)
    settle(fleet)
    check(fleet)
    assert fleet.whole() == set()


def test_a_restart_of_the_server_changes_nothing(tmp_path, fleet):
    """What devices hold and what is missing survive: the same training with a server that dies after each round ends alike."""
    fleet.train(**PLAN | {"deadline": 600.0})
    fleet.server = fleet.serve(steps=1)
    fleet.reach(PLAN["rounds"] + 1)
    other = World(tmp_path / "other")
    other.train(**PLAN | {"deadline": 600.0})
    other.server = other.serve(steps=1)
    for number in range(2, PLAN["rounds"] + 2):
        other.reach(number)
        offer = other.server.training.offer
        other.server.kill()
        other.server = other.serve(steps=1)
        assert other.server.training.offer == offer
    try:
        np.testing.assert_allclose(other.server.training.held, fleet.server.training.held, atol=2.0**-GRID)
        np.testing.assert_allclose(other.server.training.parent, fleet.server.training.parent, atol=1e-6)
    finally:
        other.server.kill()
        for device in other.devices.values():
            device.die()


def damage(device, sha256):
    """Flip a bit of a blob."""
    blob = device.root / "state" / "blobs" / sha256.hex()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)


def test_a_damaged_base_costs_a_whole_file_and_no_round(fleet):
    """The device finds out that its base is not what it was, fetches the weights whole, and goes on with differences."""
    fleet.train(**PLAN)
    fleet.server = fleet.serve(steps=1)
    fleet.devices["c"].die()  # so that the rounds stay open for a while
    fleet.reach(3)
    fleet.until(lambda: any((u["device"], u["round"]) == ("a", 3) for u in fleet.updates()))
    damage(fleet.devices["a"], session(fleet.devices["a"]).adopted)
    fleet.reach(4)
    fleet.devices["c"].start()
    fleet.reach(PLAN["rounds"] + 1)
    settle(fleet)
    check(fleet)
    assert fleet.whole() == set(*fleet.rows("SELECT weights FROM offers WHERE variant='w1-fp32' AND round=4"))
    assert {(u["device"], u["round"]) for u in fleet.updates()} >= {("a", number) for number in range(1, PLAN["rounds"] + 1)}


def test_a_difference_that_lies_is_found_out(fleet, monkeypatch):
    """A server that offers what does not lead to the order's weights costs whole files, nothing else."""
    monkeypatch.setattr("edgefl.device.rebuild.apply_difference", lambda base, *_: base)
    fleet.train(**PLAN)
    fleet.server = fleet.serve(steps=1)
    fleet.reach(PLAN["rounds"] + 1)
    settle(fleet)
    check(fleet)
    assert len(fleet.whole()) >= PLAN["rounds"] - 1


def test_weights_without_room_are_fetched_when_there_is_room(fleet, monkeypatch):
    """A store that does not take the new weights is no end: the whole file is tried, and that pauses as it always did."""
    real, full = BlobStore.put, [True]

    def put(self, data):
        if full[0] and data[:3] == b"EFW" and self.root != fleet.blobs.root:
            raise StoreError("no room")
        return real(self, data)

    monkeypatch.setattr(BlobStore, "put", put)
    fleet.train(**PLAN)
    fleet.server = fleet.serve(steps=1)
    fleet.reach(3)
    assert fleet.whole()
    full[0] = False
    fleet.reach(PLAN["rounds"] + 1)
    settle(fleet)
    check(fleet)


class Killed(BaseException):
    """The process is dead."""


@pytest.mark.parametrize("point", ["before", "after"])
def test_power_cut_around_the_new_weights(fleet, monkeypatch, point):
    """Dead just before or after the weights are in the store, the device comes to the same weights after its start."""
    real, armed = BlobStore.put, [True]

    def put(self, data):
        mine = data[:3] == b"EFW" and "/a/" in str(self.root)
        if armed[0] and mine and point == "before":
            armed[0] = False
            raise Killed
        sha256 = real(self, data)
        if armed[0] and mine:
            armed[0] = False
            raise Killed
        return sha256

    monkeypatch.setattr(BlobStore, "put", put)
    fleet.train(**PLAN)
    fleet.server = fleet.serve(steps=1)
    for _ in range(2000):
        try:
            fleet.turn()
        except Killed:
            break
    assert not armed[0]
    fleet.devices["a"].die()
    fleet.devices["a"].start()
    fleet.reach(PLAN["rounds"] + 1)
    settle(fleet)
    check(fleet)
    assert fleet.whole() == set()


def test_without_a_sparse_downlink_differences_are_offered_when_they_pay(fleet):
    """Sparse updates of a few devices leave most weights as they were: the files differ in few places, whatever the plan."""
    fleet.train(**PLAN | {"downlink_sparsity": 1.0, "sparsity": 0.01, "rounds": 4})
    fleet.server = fleet.serve(steps=1)
    fleet.reach(3)
    assert all(fleet.server.training.offer.differences.values())
    fleet.reach(5)
    settle(fleet)
    check(fleet)
    assert fleet.whole() == set()
    assert fleet.server.training.held is fleet.server.training.parent
    assert fleet.rows("SELECT DISTINCT held, held_after FROM rounds") == [(None, None)]


def test_garbage_collection_keeps_what_is_offered_and_what_is_held(fleet):
    """After each round the blobs of the offer are there, and the vectors to start again from; their number stays what it is."""
    fleet.train(**PLAN | {"rounds": 3 * REACH, "deadline": 1.0})
    fleet.server = fleet.serve(steps=1)
    counts = []
    for number in range(2, 3 * REACH):
        fleet.reach(number)
        training = fleet.server.training
        assert all(fleet.blobs.has(ref.sha256) for ref in training.offer.all_files())
        ((parent, held),) = fleet.rows("SELECT weights, held FROM rounds WHERE round=?", number)
        np.testing.assert_array_equal(load_parent(fleet.blobs, parent), training.parent)
        np.testing.assert_array_equal(load_parent(fleet.blobs, held), training.held)
        counts.append(len(list(fleet.blobs.root.iterdir())))
    assert max(counts[REACH + 5 :]) <= max(counts[: REACH + 5]) + 2
