"""Which updates count: what a server refuses, with which words, and what it acknowledges, however often it comes."""

import struct

import msgspec
import numpy as np
import pytest

import toyfleet as toy
from edgefl.codec.update import HEADER_LENGTH, encode
from edgefl.codec.weights import Precision
from edgefl.layout import Layout, Tensor
from edgefl.store.ledger import rounds
from edgefl.wire.rounds import PART_SIZE
from toyupdates import NARROW, VARIANTS, WIDE, head_of, update_of


@pytest.fixture
def fleet(tmp_path):
    """A fleet of two wide and two narrow devices with one version."""
    return toy.fleet_of_four(tmp_path)


def with_scales(data, low, high):
    """An update whose scales are replaced."""
    return data[:13] + struct.pack("<ff", low, high) + data[21:]


BAD_CONTENT = {
    "truncated": lambda data: data[:-5],
    "longer": lambda data: data + b"\0",
    "header alone": lambda data: data[:HEADER_LENGTH],
    "nonsense": lambda data: b"\xff" * len(data),
    "NaN scale": lambda data: with_scales(data, float("nan"), float("nan")),
    "infinite scale": lambda data: with_scales(data, 0.0, float("inf")),
    "enormous scale": lambda data: with_scales(data, 0.0, 3e38),
    "of another model": lambda _: update_of("a", 1, 77),
    "of the other width": lambda _: update_of("a", 1, NARROW.size),
}


@pytest.mark.parametrize("spoil", BAD_CONTENT.values(), ids=BAD_CONTENT)
def test_content_that_cannot_count_is_refused_and_not_stored(fleet, spoil):
    """An update that does not decode, is of another size, or has an impossible scale gets a reason and leaves no row."""
    fleet.train(rounds=2, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    receipt = server.answer(device, 1, data=spoil(device.data(1)))
    assert not receipt.stored
    assert receipt.reason
    assert fleet.rows("SELECT COUNT(*) FROM updates") == [(0,)]
    assert server.answer(device, 1).stored


BAD_HEADS = {
    "future round": {"number": 2},
    "round zero": {"number": 0},
    "enormous round": {"number": 1 << 53},
    "unknown variant": {"variant": "w9-fp32"},
    "variant of another profile": {"variant": "w0.5-int8"},
    "unknown version": {"version": 7},
    "unknown model": {"model": "another"},
}


@pytest.mark.parametrize("wrong", BAD_HEADS.values(), ids=BAD_HEADS)
def test_update_that_does_not_belong_is_refused(fleet, wrong):
    """An update of a round, version, model or variant that the sender cannot have trained is refused with a reason."""
    fleet.train(rounds=2, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    receipt = server.answer(device, **{"number": 1, **wrong})
    assert (receipt.stored, bool(receipt.reason)) == (False, True)
    assert fleet.rows("SELECT COUNT(*) FROM updates") == [(0,)]


def test_device_counts_only_with_the_variant_of_its_profile(fleet):
    """A perfect update of another profile's variant is refused, because this device does not have that variant."""
    fleet.train(rounds=2, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    receipt = server.answer(device, 1, data=update_of("a", 1, NARROW.size), variant="w0.5-int8")
    assert (receipt.stored, "not the one of profile big" in receipt.reason) == (False, True)


@pytest.mark.parametrize("field", ["loss_before", "loss_after"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_update_of_a_diverged_training_is_refused(fleet, field, value):
    """A loss that is not finite means that the device's training has diverged: it is never acknowledged as stored."""
    fleet.train(rounds=2, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    data = device.data(1)
    head = msgspec.structs.replace(head_of("a", 1, data, variant=device.variant), **{field: value})
    device.say("update", head)
    server.turns()
    assert not device.hear().stored
    assert fleet.rows("SELECT COUNT(*) FROM updates") == [(0,)]


def test_enormous_but_finite_loss_is_no_reason_to_refuse(fleet):
    """A large loss is a number like any other; the round's numbers can be shown as JSON."""
    fleet.train(rounds=2, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    head = msgspec.structs.replace(head_of("a", 1, device.data(1), variant=device.variant), loss_after=1e308)
    device.say("update", head)
    server.turns()
    assert device.hear().stored


def test_update_that_leaves_the_range_of_half_precision_is_refused(tmp_path, monkeypatch):
    """With an fp16 variant in the version, what would take a weight beyond fp16 is refused by name; the others train on."""
    monkeypatch.setitem(VARIANTS, "half", ("w1-fp16", WIDE, Precision.FP16))
    fleet = toy.ToyFleet(tmp_path)
    fleet.provision(a="big", h="half")
    fleet.push("big", "half")
    fleet.train(rounds=5, cohort=2)
    server, wild, tame = fleet.serve(), fleet.device("a"), fleet.device("h")
    vector = np.full(WIDE.size, 7e4, dtype=np.float32)
    data = encode(vector, sparsity=0.1, bits=1, rng=np.random.default_rng(0)).data
    assert "diverged" in server.answer(wild, 1, data=data).reason
    assert server.answer(tame, 1).stored
    assert server.answer(wild, 1).stored
    server.turns()
    assert server.training.state.number == 2


def test_second_update_for_one_round_is_refused_unless_it_is_the_same(fleet):
    """The same update again is acknowledged again; another one of the same device and round is not, because it never counts."""
    fleet.train(rounds=5, cohort=3)
    server, device = fleet.serve(), fleet.device("a")
    assert server.answer(device, 1).stored
    assert server.answer(device, 1).stored
    other = server.answer(device, 1, data=update_of("somebody else", 1, WIDE.size))
    assert (other.stored, "another update" in other.reason) == (False, True)
    assert fleet.rows("SELECT COUNT(*) FROM updates") == [(1,)]


def test_update_stored_long_ago_is_acknowledged_however_late_it_is_sent_again(fleet):
    """A receipt says what is true: an update that counted is acknowledged even when it is too late to count anew."""
    fleet.train(rounds=9, cohort=1, staleness=1)
    server, device = fleet.serve(), fleet.device("a")
    for number in range(1, 6):
        assert server.answer(device, number).stored
    assert server.answer(device, 1).stored
    late = fleet.device("b")
    assert "late" in server.answer(late, 1).reason


def test_large_update_arrives_in_parts(tmp_path, monkeypatch):
    """Parts in any order, some twice, make one update and at least one receipt; a head that promises too many is refused."""
    large = Layout((Tensor("a.weight", (40, 10_000)),))
    monkeypatch.setitem(VARIANTS, "big", ("w1-fp32", large, Precision.FP32))
    monkeypatch.setattr(toy.ToyFleet, "wide", large)
    fleet = toy.ToyFleet(tmp_path)
    fleet.provision(a="big")
    fleet.push("big")
    fleet.train(rounds=3, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    data = device.data(1, sparsity=1.0, bits=8)
    assert len(data) > 3 * PART_SIZE
    head = head_of("a", 1, data, variant=device.variant)
    cuts = range(0, len(data), PART_SIZE)
    parts = [
        msgspec.structs.replace(head, part=i, parts=len(cuts), data=data[start : start + PART_SIZE])
        for i, start in enumerate(cuts)
    ]
    device.say("update", msgspec.structs.replace(parts[0], parts=10_000, part=9_999))
    server.turns()
    assert "parts" in device.hear().reason
    for part in (*reversed(parts), parts[2], parts[-1]):
        device.say("update", part)
    server.turns()
    assert device.hear().stored
    assert [(r.round, r.updates) for r in rounds(fleet.database, 1)] == [(1, 1), (2, 0)]
    assert [r.stored for r in server.answers(device, 9, data=data)] == [False]
