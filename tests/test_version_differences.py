"""Differences between versions, made at a push: worth it, right to the last bit, bounded, served, and kept as long as named."""

import numpy as np
import pytest

import toyfleet as toy
from edgefl.codec.difference import apply_difference
from edgefl.codec.weights import Precision, encode_weights
from edgefl.layout import nested_index
from edgefl.server.catalogue import Catalogue
from edgefl.server.version_differences import LONGEST_LIST, WORTH, VersionDifferences
from edgefl.store.database import transaction
from edgefl.store.garbage import pushed_blobs
from edgefl.store.offers import record_offers
from edgefl.wire.blocks import file_ref
from edgefl.wire.files import FileRef
from toyclock import START
from toyupdates import MODEL, NARROW, VARIANTS, WIDE

RNG = np.random.default_rng(3)
FIRST = RNG.normal(scale=0.1, size=WIDE.size).astype(np.float32)


def moved(vector, count):
    """The vector with so many coordinates moved."""
    after = vector.copy()
    after[RNG.choice(len(after), count, replace=False)] += np.float32(0.5)
    return after


def weights_of(profile, vector):
    """The weights file of a profile's variant."""
    _, layout, precision = VARIANTS[profile]
    return encode_weights(vector[nested_index(WIDE, layout)], layout, precision)


@pytest.fixture
def fleet(tmp_path):
    """A fleet whose first version has known weights."""
    fleet = toy.ToyFleet(tmp_path)
    fleet.provision(a="big", b="small")
    fleet.push(parent=FIRST)
    return fleet


def ways(fleet, profile, data, layout=None):
    """The differences to these weights."""
    fleet.blobs.put(data)
    made = VersionDifferences(fleet.database, fleet.blobs, MODEL)
    return made.to(profile, file_ref("weights", data), layout or VARIANTS[profile][1])


@pytest.mark.parametrize("profile", ["big", "small"])
def test_a_version_that_differs_in_few_places_has_a_difference(fleet, profile):
    """From the weights before to the new ones, to the last bit, for float32 and for int8, in the blob store."""
    before, after = weights_of(profile, FIRST), weights_of(profile, moved(FIRST, 3))
    (way,) = ways(fleet, profile, after)
    assert way.base == file_ref("weights", before).sha256
    data = fleet.blobs.get(way.file.sha256)
    assert len(data) <= WORTH * len(after)
    assert apply_difference(before, data, VARIANTS[profile][1]) == after


def test_new_weights_have_none(fleet):
    """Where nearly everything differs, a difference is not worth it; where nothing does, none is needed."""
    assert ways(fleet, "big", weights_of("big", RNG.normal(size=WIDE.size).astype(np.float32))) == ()
    assert ways(fleet, "big", weights_of("big", FIRST)) == ()


def test_the_last_two_versions_are_bases_the_shortest_way_first(fleet):
    """Of three versions before, the last two; and what devices of their newest round hold."""
    second = moved(FIRST, 2)
    third = moved(second, 2)
    fleet.push(parent=second)
    fleet.push(parent=third)
    trained = moved(third, 12)
    held = weights_of("big", trained)
    record_offers(fleet.database, MODEL, 3, 5, {"w1-fp32": fleet.blobs.put(held)}, since=1)
    fourth = moved(trained, 1)
    found = ways(fleet, "big", weights_of("big", fourth))
    expected = [held, weights_of("big", third), weights_of("big", second)]
    assert [way.base for way in found] == [file_ref("weights", data).sha256 for data in expected]
    assert [way.file.length for way in found] == sorted(way.file.length for way in found)


def test_another_layout_or_precision_has_none(fleet):
    """A variant that changed its width, or its precision, starts from nothing."""
    assert ways(fleet, "big", weights_of("small", moved(FIRST, 1)), NARROW) == ()
    halved = encode_weights(moved(FIRST, 1), WIDE, Precision.FP16)
    assert ways(fleet, "big", halved) == ()


@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_a_base_that_is_lost_costs_a_longer_download_only(fleet, damage):
    """The push goes on without it."""
    path = fleet.blobs.path(file_ref("weights", weights_of("big", FIRST)).sha256)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert ways(fleet, "big", weights_of("big", moved(FIRST, 1))) == ()


def test_the_list_leaves_room_in_the_manifest(fleet, monkeypatch):
    """Differences whose descriptions would not fit are left out."""
    long = FileRef("difference", bytes(32), 1 << 26, (bytes(16),) * (LONGEST_LIST // 16))
    monkeypatch.setattr("edgefl.server.version_differences.file_ref", lambda *_: long)
    assert ways(fleet, "big", weights_of("big", moved(FIRST, 3))) == ()


def test_what_a_manifest_names_is_served_and_kept(fleet):
    """A device may ask for a difference that an announced manifest names, and the collection of garbage leaves it."""
    after = moved(FIRST, 3)
    differences = ways(fleet, "big", weights_of("big", after))
    fleet.push("big", parent=after, differences=differences, sources=("https://example.org/blobs",))
    sha256 = differences[0].file.sha256
    catalogue = Catalogue(fleet.database, fleet.blobs, fleet.clock.wall)
    catalogue.refresh()
    assert catalogue.files()[sha256] == (MODEL, differences[0].file)
    assert sha256 in pushed_blobs(fleet.database)
    with transaction(fleet.database):
        fleet.database.execute("DELETE FROM variants WHERE version=2")
    assert sha256 not in pushed_blobs(fleet.database)


@pytest.mark.slow
def test_a_push_names_its_differences_and_sources(tmp_path):
    """Two real pushes of a real model, the second with a few weights changed: a device of the first has a short way."""
    pytest.importorskip("torch")
    from safetensors.numpy import save_file

    from edgefl.errors import InputError
    from edgefl.profile import shipped_profiles
    from edgefl.server.founding import create_fleet
    from edgefl.server.push import PushRequest, push
    from edgefl.server.variants import load_parent
    from edgefl.store.blobs import BlobStore
    from edgefl.store.database import open_database
    from edgefl.store.versions import latest_version, variants

    fleet, board = create_fleet(tmp_path / "fleet", name="test"), shipped_profiles()["rpi-zero-2w"]
    request = PushRequest(model="digits", source="mnist-2nn", batch=10, sources=("https://example.org/blobs",))
    push(fleet, request, [board], now=START)
    with pytest.raises(InputError, match="source"):
        push(fleet, PushRequest(model="digits", source="mnist-2nn", sources=("http://example.org",)), [board], now=START)
    database, blobs = open_database(fleet.database), BlobStore(fleet.blobs)
    version = latest_version(database, "digits")
    vector = moved(load_parent(blobs, version.weights), 1000)
    save_file({name: value.copy() for name, value in version.layout.views(vector).items()}, tmp_path / "second.safetensors")
    push(
        fleet, PushRequest(model="digits", source="mnist-2nn", batch=10, weights=tmp_path / "second.safetensors"), [board], now=1
    )
    ((one,), (two,)) = ([record.manifest for record in variants(database, "digits", number)] for number in (1, 2))
    assert (one.sources, one.differences, two.sources) == (("https://example.org/blobs",), (), ())
    (way,) = two.differences
    assert way.base == one.file("weights").sha256
    assert way.file.length < two.file("weights").length / 20
    made = apply_difference(blobs.get(way.base), blobs.get(way.file.sha256), two.layout)
    assert made == blobs.get(two.file("weights").sha256)
    database.close()
