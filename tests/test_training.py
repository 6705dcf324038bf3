"""A training on the server: which updates count, what they come to, and that no crash changes either."""

import functools
import struct

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import toyfleet as toy
from edgefl.codec.difference import encode_difference
from edgefl.codec.update import HEADER_LENGTH, encode
from edgefl.codec.weights import Precision
from edgefl.layout import Layout, Tensor
from edgefl.link.memory import MemoryLink
from edgefl.server import downlink
from edgefl.server.variants import load_parent
from edgefl.store.blobs import BlobStore
from edgefl.store.database import Database
from edgefl.store.ledger import end_training, rounds
from edgefl.wire.rounds import PART_SIZE


@pytest.fixture
def fleet(tmp_path):
    """A fleet of two wide and two narrow devices with one version."""
    return toy.fleet_of_four(tmp_path)


def with_scales(data, low, high):
    """An update whose scales are replaced."""
    return data[:13] + struct.pack("<ff", low, high) + data[21:]


def answer(server, device, number, **options):
    """The receipt for an update that a device sends now."""
    device.receipts.clear()
    device.send(number, **options)
    server.turns()
    return device.hear()


BAD_CONTENT = {
    "truncated": lambda data: data[:-5],
    "longer": lambda data: data + b"\0",
    "header alone": lambda data: data[:HEADER_LENGTH],
    "nonsense": lambda data: b"\xff" * len(data),
    "NaN scale": lambda data: with_scales(data, float("nan"), float("nan")),
    "infinite scale": lambda data: with_scales(data, 0.0, float("inf")),
    "enormous scale": lambda data: with_scales(data, 0.0, 3e38),
    "of another model": lambda _: toy.update_of("a", 1, 77),
    "of the other width": lambda _: toy.update_of("a", 1, toy.NARROW.size),
}


@pytest.mark.parametrize("spoil", BAD_CONTENT.values(), ids=BAD_CONTENT)
def test_content_that_cannot_count_is_refused_and_not_stored(fleet, spoil):
    """An update that does not decode, is of another size, or has an impossible scale gets a reason and leaves no row."""
    fleet.train(rounds=2, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    receipt = answer(server, device, 1, data=spoil(device.data(1)))
    assert not receipt.stored
    assert receipt.reason
    assert fleet.rows("SELECT COUNT(*) FROM updates") == [(0,)]
    assert answer(server, device, 1).stored


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
    receipt = answer(server, device, **{"number": 1, **wrong})
    assert (receipt.stored, bool(receipt.reason)) == (False, True)
    assert fleet.rows("SELECT COUNT(*) FROM updates") == [(0,)]


def test_device_counts_only_with_the_variant_of_its_profile(fleet):
    """A perfect update of another profile's variant is refused, because this device does not have that variant."""
    fleet.train(rounds=2, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    receipt = answer(server, device, 1, data=toy.update_of("a", 1, toy.NARROW.size), variant="w0.5-int8")
    assert (receipt.stored, "not the one of profile big" in receipt.reason) == (False, True)


@pytest.mark.parametrize("field", ["loss_before", "loss_after"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_update_of_a_diverged_training_is_refused(fleet, field, value):
    """A loss that is not finite means that the device's training has diverged: it is never acknowledged as stored."""
    fleet.train(rounds=2, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    data = device.data(1)
    head = msgspec.structs.replace(toy.head_of("a", 1, data, variant=device.variant), **{field: value})
    device.say("update", head)
    server.turns()
    assert not device.hear().stored
    assert fleet.rows("SELECT COUNT(*) FROM updates") == [(0,)]


def test_enormous_but_finite_loss_is_no_reason_to_refuse(fleet):
    """A large loss is a number like any other; the round's numbers can be shown as JSON."""
    fleet.train(rounds=2, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    head = msgspec.structs.replace(toy.head_of("a", 1, device.data(1), variant=device.variant), loss_after=1e308)
    device.say("update", head)
    server.turns()
    assert device.hear().stored


def test_update_that_leaves_the_range_of_half_precision_is_refused(tmp_path, monkeypatch):
    """With an fp16 variant in the version, what would take a weight beyond fp16 is refused by name; the others train on."""
    monkeypatch.setitem(toy.VARIANTS, "half", ("w1-fp16", toy.WIDE, Precision.FP16))
    fleet = toy.ToyFleet(tmp_path)
    fleet.provision(a="big", h="half")
    fleet.push("big", "half")
    fleet.train(rounds=5, cohort=2)
    server, wild, tame = fleet.serve(), fleet.device("a"), fleet.device("h")
    vector = np.full(toy.WIDE.size, 7e4, dtype=np.float32)
    data = encode(vector, sparsity=0.1, bits=1, rng=np.random.default_rng(0)).data
    assert "diverged" in answer(server, wild, 1, data=data).reason
    assert answer(server, tame, 1).stored
    assert answer(server, wild, 1).stored
    server.turns()
    assert server.training.state.number == 2


def test_weights_that_cannot_be_written_are_given_up(fleet, monkeypatch, caplog):
    """If the mean cannot be written the round closes with the weights that it began with, and the training goes on."""
    from edgefl.errors import ModelError

    fleet.train(rounds=3, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    before = server.training.parent.copy()
    with monkeypatch.context() as patch:

        def refuse(*_):
            raise ModelError("these weights cannot be written")

        patch.setattr("edgefl.server.variants.Variant.weights", refuse)
        device.send(1)
        server.turns()
    assert "diverged" in caplog.text
    assert server.training.state.number == 2
    np.testing.assert_array_equal(server.training.parent, before)
    assert answer(server, device, 2).stored


def test_second_update_for_one_round_is_refused_unless_it_is_the_same(fleet):
    """The same update again is acknowledged again; another one of the same device and round is not, because it never counts."""
    fleet.train(rounds=5, cohort=3)
    server, device = fleet.serve(), fleet.device("a")
    assert answer(server, device, 1).stored
    assert answer(server, device, 1).stored
    other = answer(server, device, 1, data=toy.update_of("somebody else", 1, toy.WIDE.size))
    assert (other.stored, "another update" in other.reason) == (False, True)
    assert fleet.rows("SELECT COUNT(*) FROM updates") == [(1,)]


def test_update_stored_long_ago_is_acknowledged_however_late_it_is_sent_again(fleet):
    """A receipt says what is true: an update that counted is acknowledged even when it is too late to count anew."""
    fleet.train(rounds=9, cohort=1, staleness=1)
    server, device = fleet.serve(), fleet.device("a")
    for number in range(1, 6):
        assert answer(server, device, number).stored
    assert answer(server, device, 1).stored
    late = fleet.device("b")
    assert "late" in answer(server, late, 1).reason


def test_large_update_arrives_in_parts(tmp_path, monkeypatch):
    """Parts in any order, some twice, make one update and at least one receipt; a head that promises too many is refused."""
    large = Layout((Tensor("a.weight", (40, 10_000)),))
    monkeypatch.setitem(toy.VARIANTS, "big", ("w1-fp32", large, Precision.FP32))
    monkeypatch.setattr(toy.ToyFleet, "wide", large)
    fleet = toy.ToyFleet(tmp_path)
    fleet.provision(a="big")
    fleet.push("big")
    fleet.train(rounds=3, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    data = device.data(1, sparsity=1.0, bits=8)
    assert len(data) > 3 * PART_SIZE
    head = toy.head_of("a", 1, data, variant=device.variant)
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
    assert [r.stored for r in answers(server, device, 9, data)] == [False]


def answers(server, device, number, data):
    """All receipts for an update of several parts."""
    device.receipts.clear()
    device.send(number, data=data)
    server.turns()
    device.hear()
    return device.receipts


def test_rounds_count_on_over_the_trainings_of_a_version(fleet):
    """A second training goes on with the next round number and the weights of the first; nothing counts in both."""
    first = fleet.train(rounds=2, cohort=1)
    server, device, other = fleet.serve(), fleet.device("a"), fleet.device("b")
    for number in (1, 2):
        answer(server, device, number)
    ended = server.training.parent.copy()
    fleet.train(rounds=2, cohort=2)
    server.turns()
    assert server.training.state.number == 3
    np.testing.assert_array_equal(server.training.parent, ended)
    assert answer(server, device, 2).stored  # its receipt had been lost
    assert answer(server, other, 2).stored  # one round late, and new
    assert fleet.rows("SELECT device, round, training FROM updates WHERE counted IS NULL") == [("b", 2, first + 1)]


def test_training_started_again_takes_over_what_waits(fleet):
    """Updates of a round that was stopped count when the training of the version is started again, once."""
    training = fleet.train(rounds=5, cohort=3)
    server, devices = fleet.serve(), [fleet.device(name) for name in "acb"]
    begun = server.training.parent.copy()
    for device in devices[:2]:
        assert answer(server, device, 1).stored
    end_training(fleet.database, training, "stopped")
    server.turns()
    fleet.train(rounds=5, cohort=3)
    server.turns()
    assert answer(server, devices[0], 1).stored
    assert answer(server, devices[2], 2).stored
    assert server.training.state.number == 3
    expected = toy.reference(begun, [("a", "big", 1), ("c", "small", 1), ("b", "big", 2)], number=2)
    np.testing.assert_allclose(server.training.parent, expected, rtol=1e-6, atol=1e-7)


def test_command_between_two_looks_of_the_server_loses_no_update(fleet):
    """Stopped and started again before the server looks: what it is sent meanwhile gets no receipt, or counts."""
    training = fleet.train(rounds=5, cohort=2)
    server, a, c = fleet.serve(), fleet.device("a"), fleet.device("c")
    assert answer(server, a, 1).stored
    end_training(fleet.database, training, "stopped")
    again = fleet.train(rounds=5, cohort=2)
    server.service._look_at = fleet.clock.now + 100.0
    assert answer(server, c, 1) is None
    server.service._look_at = fleet.clock.now
    server.turns()
    assert answer(server, c, 1).stored
    assert fleet.rows("SELECT device, counted FROM updates WHERE training=? ORDER BY device", again) == [("a", 2), ("c", 2)]


def test_round_of_a_stopped_training_does_not_close(fleet):
    """A cohort that is complete after the stop, before the server has looked, changes no weights."""
    training = fleet.train(rounds=5, cohort=4, deadline=60.0)
    server = fleet.serve()
    answer(server, fleet.device("a"), 1)
    end_training(fleet.database, training, "stopped")
    fleet.clock.now += 100.0
    begun = server.training.parent.copy()
    server.service._guarded(lambda: server.service._advance(toy.MODEL))
    np.testing.assert_array_equal(server.training.parent, begun)
    assert (server.training.state.number, server.training.state.finished) == (1, True)
    assert fleet.rows("SELECT closed, result FROM rounds") == [(None, None)]


def test_round_opened_by_a_clock_that_was_ahead_is_not_waited_for(fleet):
    """After the clock has been put right and the server started again, the deadline counts from the start."""
    fleet.clock.now = 365 * 86400.0
    fleet.train(rounds=2, cohort=4, deadline=60.0)
    fleet.clock.now = 0.0
    server, device = fleet.serve(), fleet.device("a")
    answer(server, device, 1)
    server.turns(2, seconds=60.0)
    assert server.training.state.number == 2


def test_content_of_an_update_goes_with_its_round(fleet):
    """After the aggregation the row stays, so that a repetition is known, and the device's delta is deleted."""
    fleet.train(rounds=3, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    answer(server, device, 1)
    assert fleet.rows("SELECT device, round, counted, data FROM updates") == [("a", 1, 1, b"")]


def test_holdout_that_is_gone_costs_the_measurement_and_not_the_round(fleet, caplog):
    """Without its hold-out examples a round closes unmeasured, and the log says why."""
    fleet.train(rounds=2, cohort=1, holdout="npz:/nowhere/at-all.npz")
    server, device = fleet.serve(), fleet.device("a")
    answer(server, device, 1)
    assert "cannot be evaluated" in caplog.text
    assert [(r.closed is not None, r.accuracy) for r in rounds(fleet.database, 1)] == [(True, None), (False, None)]


# Crashes


class KilledError(BaseException):
    """The process ends here."""


class Points:
    """Every place where a server touches the world, counted; at one of them it dies."""

    def __init__(self, monkeypatch, fleet):
        """Count from now on what services do; the fleet's own connection is left alone."""
        self.count, self.at = 0, None
        for owner, name in ((Database, "execute"), (Database, "executemany"), (Database, "__exit__"), (BlobStore, "put")):
            self._watch(monkeypatch, owner, name, lambda it: it is not fleet.database)
        self._watch(monkeypatch, MemoryLink, "publish", lambda it: it._client_id == "edgefl-server")

    def _watch(self, monkeypatch, owner, name, concerns):
        original = getattr(owner, name)

        def watched(it, *arguments, **options):
            if not concerns(it):
                return original(it, *arguments, **options)
            self.pass_by()
            result = original(it, *arguments, **options)
            self.pass_by()
            return result

        monkeypatch.setattr(owner, name, watched)

    def pass_by(self):
        """One more place has been reached."""
        if self.at is not None:
            self.count += 1
            if self.count == self.at:
                raise KilledError


def course(fleet, points):
    """Two rounds of three devices; whenever the server dies it is started again, and devices send again."""
    fleet.train(rounds=2, cohort=3)
    devices = [fleet.device(name) for name in "acb"]
    deaths = 0
    server = None
    for _ in range(30):
        if fleet.rows("SELECT state FROM trainings") == [("finished",)]:
            break
        try:
            if server is None:
                server = fleet.serve()
            for device in devices:
                device.hear()
                if device.orders and device.orders[-1].task is not None:
                    device.send(device.orders[-1].round)
                    server.turns()
        except KilledError:
            points.at = None
            deaths += 1
            if server is not None:  # otherwise it died while it started
                server.kill()
            server = None
    if server is not None:
        server.kill()
    return deaths


@pytest.mark.slow
def test_death_at_any_point_changes_nothing(tmp_path):
    """Killed before or after any statement, file or message, a restarted server ends with the same bits, all counted once."""
    results, points_passed, kill_at = set(), 10**9, 0
    differences = functools.cache(encode_difference)  # every course has the same weights
    while kill_at <= points_passed:
        with pytest.MonkeyPatch.context() as patch:
            root = tmp_path / str(kill_at)
            root.mkdir()
            patch.setattr("os.fsync", lambda _: None)  # processes die here, not the power
            patch.setattr(downlink, "encode_difference", differences)
            fleet = toy.fleet_of_four(root)
            points = Points(patch, fleet)
            points.at = kill_at or 10**9
            deaths = course(fleet, points)
            if kill_at == 0:
                points_passed = points.count
            else:
                assert deaths == 1
            counted = fleet.rows("SELECT device, round, counted FROM updates ORDER BY counted, device")
            assert counted == [(device, number, number) for number in (1, 2) for device in "abc"]
            ((sha256,),) = fleet.rows("SELECT result FROM rounds WHERE round=2")
            results.add(sha256)
            assert len(load_parent(fleet.blobs, sha256)) == toy.WIDE.size
            fleet.database.close()
        kill_at += 1
    assert points_passed > 60
    assert len(results) == 1


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from("abcd"), st.integers(0, 3)),
        st.tuples(st.just("restart"), st.just(""), st.just(0)),
        st.tuples(st.just("wait"), st.just(""), st.integers(1, 90)),
        st.tuples(st.just("stop and start"), st.just(""), st.integers(2, 3)),
    ),
    min_size=5,
    max_size=30,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ACTIONS)
def test_whatever_happens_every_acknowledged_update_counts_once(tmp_path_factory, monkeypatch, actions):
    """Whatever arrives, is repeated, restarted or stopped: each receipt has its row, and the rows' dense mean is the result."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    fleet = toy.fleet_of_four(tmp_path_factory.mktemp("toy"))
    training = fleet.train(rounds=50, cohort=3, quorum=1, deadline=60.0, staleness=2)
    server, devices = fleet.serve(), {name: fleet.device(name) for name in "abcd"}
    begun = server.training.parent.copy()
    promised = set()
    for kind, name, number in actions:
        if kind == "send":
            trained_for = max(0, server.training.state.number - number)
            receipt = answer(server, devices[name], trained_for)
            promised |= {(name, trained_for)} if receipt.stored else set()
        elif kind == "restart":
            server.kill()
            server = fleet.serve()
        elif kind == "wait":
            server.turns(1, seconds=float(number))
        else:
            end_training(fleet.database, training, "stopped")
            training = fleet.train(rounds=50, cohort=number, quorum=1, deadline=60.0, staleness=2)
        server.turns()
    rows = fleet.rows("SELECT device, round, counted FROM updates")
    assert {(device, trained_for) for device, trained_for, _ in rows} == promised
    assert len(rows) == len(promised)
    parent = begun.astype(np.float64)
    for number in sorted({counted for _, _, counted in rows if counted}):
        updates = [(device, fleet.profiles[device], trained_for) for device, trained_for, counted in rows if counted == number]
        parent = toy.reference(parent.astype(np.float32).astype(np.float64), updates, number=number)
    np.testing.assert_allclose(server.training.parent, parent, rtol=1e-5, atol=1e-6)
    fleet.database.close()
    server.kill()
