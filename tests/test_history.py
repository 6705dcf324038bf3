"""What the server remembers of the weights that devices had: exactly, long enough, and no longer."""

import numpy as np
import pytest

import toyfleet as toy
from edgefl.codec.weights import decode_weights, encode_weights
from edgefl.errors import StoreError, UpdateError
from edgefl.layout import nested_index
from edgefl.server import history
from edgefl.server.history import IN_MEMORY, Histories
from edgefl.server.variants import load_variants
from edgefl.store.ledger import trainings
from edgefl.store.offers import offered, offered_blobs, record_offers
from edgefl.store.versions import get_version
from edgefl.wire.blocks import file_ref
from edgefl.wire.rounds import HISTORY_REACH
from edgefl.wire.tasks import LONGEST_CONTEXT
from toyupdates import MODEL, VARIANTS, WIDE

PRESENT = b"EFU\x02 something that names a history"


@pytest.fixture
def fleet(tmp_path, monkeypatch):
    """A fleet with one version; a decoder that hands the history out instead of reading with it."""
    fleet = toy.ToyFleet(tmp_path)
    fleet.provision(a="big", b="small")
    fleet.push()
    monkeypatch.setattr(history, "decode", lambda _data, size, past: (size, past))
    return fleet


def histories(fleet, **plan):
    """The memory of a running training."""
    if not trainings(fleet.database):
        fleet.train(**plan)
    (record,) = trainings(fleet.database)
    return Histories(
        fleet.database, fleet.blobs, record, load_variants(fleet.database, get_version(fleet.database, MODEL, 1), fleet.blobs)
    )


def offer(fleet, memory, number):
    """A round's weights, on the disk and written down; the vector of each variant as its devices decode it."""
    parent = np.random.default_rng(number).normal(size=WIDE.size).astype(np.float32)
    files, vectors = {}, {}
    for name, layout, precision in VARIANTS.values():
        data = encode_weights(parent[nested_index(WIDE, layout)], layout, precision)
        fleet.blobs.put(data)
        files[name], vectors[name] = file_ref("weights", data), decode_weights(data, layout)
    memory.opens(number, files)
    return files, vectors


def read(memory, variant, number, before):
    """The history that an update would be read with."""
    return memory.decode(PRESENT, variant, number, before)[1]


@pytest.mark.parametrize("variant", ["w1-fp32", "w0.5-int8"])
def test_a_history_is_what_the_devices_decoded(fleet, variant):
    """Of every precision, start, before and now are to the last bit what boards have; 0 stands for the version's own."""
    memory = histories(fleet)
    vectors = [offer(fleet, memory, number)[1][variant] for number in (1, 2)]
    manifest = load_variants(fleet.database, get_version(fleet.database, MODEL, 1), fleet.blobs)[variant].manifest
    start = decode_weights(fleet.blobs.get(manifest.file("weights").sha256), manifest.layout)
    one, other = read(memory, variant, 2, 1), read(memory, variant, 2, 0)
    np.testing.assert_array_equal(one.before, vectors[0])
    np.testing.assert_array_equal(other.before, start)
    for found in (one, other):
        np.testing.assert_array_equal(found.now, vectors[1])
        np.testing.assert_array_equal(found.start, start)
        assert found.shapes == tuple(tensor.shape for tensor in manifest.layout.tensors)


def test_a_restart_remembers(fleet):
    """Another process reads the same."""
    _, vectors = offer(fleet, histories(fleet), 1)
    offer(fleet, histories(fleet), 2)
    np.testing.assert_array_equal(read(histories(fleet), "w1-fp32", 2, 1).before, vectors["w1-fp32"])


def test_plain_updates_need_no_memory(fleet):
    """Whatever round they name, and however much is gone."""
    assert histories(fleet).decode(b"EFU\x01 plain", "w1-fp32", 1000, 999) == (WIDE.size, None)


@pytest.mark.parametrize("before", [5, 6, 1 << 50, 20 - HISTORY_REACH - 1])
def test_a_round_that_cannot_be_named_is_refused(fleet, before):
    """Too far back, or not back at all."""
    memory = histories(fleet)
    number = 20 if before == 20 - HISTORY_REACH - 1 else 5
    with pytest.raises(UpdateError, match="impossible round"):
        read(memory, "w1-fp32", number, before)


def test_what_is_gone_is_refused_and_what_cannot_be_read_is_not(fleet, monkeypatch):
    """Missing and damaged weights refuse the update; a disk that fails now asks the device to come again."""
    memory = histories(fleet)
    files, _ = offer(fleet, memory, 1)
    offer(fleet, memory, 2)
    path = fleet.blobs.path(files["w1-fp32"].sha256)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UpdateError, match="weights of round 1"):
        read(memory, "w1-fp32", 2, 1)
    path.write_bytes(whole)
    with monkeypatch.context() as patched:
        patched.setattr(type(fleet.blobs), "read_range", lambda *_: (_ for _ in ()).throw(StoreError("the disk is ill")))
        with pytest.raises(StoreError, match="ill"):
            read(memory, "w1-fp32", 2, 1)
    assert read(memory, "w1-fp32", 2, 1) is not None
    path.unlink()
    assert read(memory, "w1-fp32", 2, 1) is not None, "it is in memory still"
    with pytest.raises(UpdateError, match="weights of round 1"):
        read(histories(fleet), "w1-fp32", 2, 1)


@pytest.mark.parametrize(("plan", "kept"), [({"staleness": 2}, 2 + HISTORY_REACH), ({"staleness": 0}, HISTORY_REACH)])
def test_weights_are_kept_as_long_as_an_update_can_name_them(fleet, plan, kept):
    """While round n is open everything back to n - staleness - reach can be read; what lies before has no row and no file."""
    memory = histories(fleet, rounds=40, **plan)
    for number in range(1, 31):
        offer(fleet, memory, number)
    oldest = min(row[0] for row in fleet.rows("SELECT round FROM offers"))
    assert oldest == 30 - 1 - kept  # of the round before, which may still have been open
    assert len(memory.files()) == 2 * (30 - oldest + 1)
    late = 30 - plan["staleness"]
    assert read(memory, "w1-fp32", late, late - HISTORY_REACH) is not None


def test_a_pruned_parent_keeps_no_more_than_the_longest_context(fleet):
    """However late the plan lets updates be, the weights of so many rounds are enough for the disk."""
    memory = histories(fleet, rounds=100, staleness=1000)
    memory.pruned = True
    for number in range(1, 61):
        offer(fleet, memory, number)
    assert fleet.rows("SELECT MIN(round) FROM offers")[0][0] == 60 - 1 - LONGEST_CONTEXT - HISTORY_REACH


def test_memory_holds_a_few_histories(fleet):
    """However many rounds are named, a handful of vectors stays; naming the same again reads nothing anew."""
    memory = histories(fleet, rounds=40)
    for number in range(1, 20):
        offer(fleet, memory, number)
    for number in range(12, 20):
        read(memory, "w1-fp32", number, number - 1)
    assert len(memory._histories) <= IN_MEMORY
    assert len(memory._weights) <= IN_MEMORY
    assert read(memory, "w1-fp32", 19, 18) is read(memory, "w1-fp32", 19, 18)


def test_offers_are_rows_of_one_version(fleet):
    """Another version's rounds have their own weights; forgetting one forgets nothing of the other."""
    database = fleet.database
    record_offers(database, "toy", 1, 1, {"w1": bytes(32)}, since=0)
    record_offers(database, "toy", 2, 1, {"w1": b"\1" * 32}, since=0)
    record_offers(database, "toy", 2, 9, {"w1": b"\2" * 32}, since=9)
    assert offered(database, "toy", 1, 1, "w1") == bytes(32)
    assert offered(database, "toy", 2, 1, "w1") is None
    assert offered_blobs(database, "toy", 2) == {b"\2" * 32}
