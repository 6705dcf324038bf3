"""Weights that a difference leads to: fetched as the difference and rebuilt, to the last bit, or else fetched whole."""

import random

import msgspec
import numpy as np
import pytest

import toyfetch as toy
from edgefl.codec.difference import encode_difference
from edgefl.codec.weights import Precision, encode_weights
from edgefl.device.ways import Ways, ways_of
from edgefl.layout import Layout, Tensor
from edgefl.link.memory_broker import MemoryBroker
from edgefl.wire import topics
from edgefl.wire.files import BLOCK_SIZE, Difference
from toyclock import Clock
from toyoffice import Office

LAYOUT = Layout((Tensor("w", (400, 500)),))
RNG = np.random.default_rng(0)
BEFORE = RNG.normal(size=LAYOUT.size).astype(np.float32)
AFTER = BEFORE.copy()
AFTER[RNG.choice(LAYOUT.size, 2000, replace=False)] += np.float32(0.25)
OLD, NEW = (encode_weights(vector, LAYOUT, Precision.FP32) for vector in (BEFORE, AFTER))


class Versions:
    """A world whose server has two versions and the difference between their weights."""

    def __init__(self, root):
        """The device holds nothing yet."""
        self.world = toy.World(root)
        self.office = self.world.office
        self.graph = self.office.offer("train", b"a graph")
        self.weights = self.office.offer("weights", NEW)
        self.base = self.office.offer("weights", OLD)
        self.difference = self.office.offer("difference", encode_difference(OLD, NEW, LAYOUT))

    def need(self, *differences):
        """What the new version needs, with these ways to its weights."""
        files = (self.graph, self.weights)
        ways = Ways(self.weights.sha256, differences, LAYOUT, (), frozenset(ref.sha256 for ref in files))
        self.world.fetcher.need("m", files, ways)

    def way(self, base=None, file=None):
        """A difference as a manifest names it."""
        return Difference(base or self.base.sha256, file or self.difference)

    def bytes_of(self, ref):
        """Bytes of a file that have crossed the link."""
        return self.world.broker.delivered_bytes[topics.block(ref.sha256.hex())]


@pytest.fixture
def versions(tmp_path):
    """Two versions."""
    versions = Versions(tmp_path)
    yield versions
    versions.world.fetcher.close()


def test_a_device_that_holds_the_base_fetches_the_difference(versions):
    """A few KiB instead of 800, the same bytes on disk, and nothing of the whole file on the link."""
    versions.world.blobs.put(OLD)
    versions.need(versions.way())
    assert set(versions.world.turns()) == {versions.graph.sha256, versions.weights.sha256}
    assert versions.world.blobs.get(versions.weights.sha256) == NEW
    assert versions.bytes_of(versions.weights) == 0
    assert 0 < versions.bytes_of(versions.difference) < len(NEW) / 50
    assert versions.world.fetcher.percent("m") == 100
    assert versions.world.turns() == []


def test_a_caller_that_names_no_differences_gets_whole_files(versions):
    """Without ways nothing changes."""
    versions.world.blobs.put(OLD)
    versions.world.fetcher.need("m", (versions.graph, versions.weights))
    assert set(versions.world.turns()) == {versions.graph.sha256, versions.weights.sha256}
    assert versions.bytes_of(versions.difference) == 0


@pytest.mark.parametrize("damaged", [False, True])
def test_without_an_intact_base_the_whole_file_is_fetched(versions, damaged):
    """A base that is missing, or damaged on disk, is no base."""
    if damaged:
        path = versions.world.blobs.path(versions.world.blobs.put(OLD))
        path.write_bytes(OLD[:-1] + b"?")
    versions.need(versions.way())
    assert set(versions.world.turns()) == {versions.graph.sha256, versions.weights.sha256}
    assert versions.bytes_of(versions.difference) == 0
    assert versions.world.blobs.get(versions.weights.sha256) == NEW


def test_of_several_differences_the_first_whose_base_is_here_is_taken(versions):
    """Others' bases do not matter."""
    versions.world.blobs.put(OLD)
    other = versions.office.offer("difference", b"another way")
    versions.need(versions.way(bytes(32), other), versions.way())
    versions.world.turns()
    assert versions.bytes_of(other) == 0
    assert versions.world.blobs.get(versions.weights.sha256) == NEW


@pytest.mark.parametrize("kind", ["garbage", "wrong result", "other base"])
def test_a_difference_that_does_not_lead_there_costs_itself_and_no_more(versions, kind):
    """Good blocks of a bad difference: the whole file follows, at once and without an error, and it is not tried again."""
    versions.world.blobs.put(OLD)
    moved = AFTER.copy()
    moved[0] += 1
    data = {
        "garbage": b"no difference at all",
        "wrong result": encode_difference(OLD, encode_weights(moved, LAYOUT, Precision.FP32), LAYOUT),
        "other base": encode_difference(encode_weights(moved, LAYOUT, Precision.FP32), NEW, LAYOUT),
    }[kind]
    bad = versions.office.offer("difference", data)
    versions.need(versions.way(file=bad))
    done = set(versions.world.turns(100))
    assert {versions.graph.sha256, versions.weights.sha256} <= done
    assert versions.world.blobs.get(versions.weights.sha256) == NEW
    assert versions.world.fetcher.failure() is None
    for _ in range(2):
        versions.need(versions.way(file=bad))
        assert versions.weights.sha256 in versions.world.fetcher.completed()


def test_a_base_that_disappears_on_the_way_is_no_disaster(versions):
    """The base is gone when the difference is there: the whole file is fetched."""
    sha256 = versions.world.blobs.put(OLD)
    versions.office.serves = False
    versions.need(versions.way())
    versions.world.blobs.path(sha256).unlink()
    versions.office.serves = True
    assert versions.weights.sha256 in versions.world.turns(200)
    assert versions.world.blobs.get(versions.weights.sha256) == NEW


def test_a_restart_between_difference_and_rebuilding_fetches_neither_again(versions):
    """A difference that is complete on disk is applied at the next start."""
    versions.world.blobs.put(OLD)
    versions.world.blobs.put(encode_difference(OLD, NEW, LAYOUT))
    versions.office.serves = False
    versions.need(versions.way())
    assert versions.weights.sha256 in versions.world.fetcher.completed()
    assert versions.world.blobs.get(versions.weights.sha256) == NEW


def test_a_whole_file_that_has_been_begun_is_finished(versions):
    """Blocks of the whole file on disk are worth more than a difference that may have failed before."""
    versions.world.blobs.put(OLD)
    versions.world.fetcher.need("m", (versions.weights,))
    while versions.world.fetcher._active[versions.weights.sha256].file.have.bit_count() < 5:
        versions.world.turns(1)
    versions.world.fetcher.close()
    versions.world.start()
    versions.need(versions.way())
    assert versions.weights.sha256 in versions.world.turns(100)
    assert versions.bytes_of(versions.difference) == 0


def test_progress_counts_the_difference_for_the_file(versions):
    """Half of the difference is half of the weights; the bytes told are those of the version's files."""
    big = versions.office.offer("difference", random.Random(0).randbytes(10 * BLOCK_SIZE))
    versions.world.blobs.put(OLD)
    versions.need(versions.way(file=big))
    while versions.world.fetcher._active[big.sha256].file.have.bit_count() < 5:
        versions.world.turns(1)
    assert 40 <= versions.world.fetcher.percent("m") <= 60
    assert versions.world.fetcher.fetched("m") <= 0.6 * len(NEW) + 7


def test_a_manifest_says_its_ways():
    """Differences, layout, usable sources and what they have, from a manifest; none from none."""
    versions = Office(MemoryBroker(), Clock())
    manifest, _ = versions.manifest(announce=False)
    way = Difference(bytes(32), versions.offer("difference", b"short"))
    sources = ("https://example.org/blobs/", "ftp://example.org", "http://example.org", "file:///media/stick", "file://host/x")
    manifest = msgspec.structs.replace(manifest, differences=(way,), sources=sources)
    ways = ways_of(manifest)
    assert ways.sources == ("https://example.org/blobs", "file:///media/stick")
    assert ways.to(manifest.file("weights")) == (way,)
    assert ways.to(manifest.file("train")) == ()
    assert way.file.sha256 in ways.files
    assert ways_of(None) == Ways()
