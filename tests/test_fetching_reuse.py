"""Blocks that are on the device already: found in files of other versions and in unfinished ones, never believed unchecked."""

import os
import random

import pytest

import toyfetch as toy
from edgefl.device import reuse
from edgefl.device.reuse import BlockIndex
from edgefl.store.partial import PartialFile
from edgefl.wire.blocks import file_ref
from edgefl.wire.files import BLOCK_SIZE

OLD = random.Random(1).randbytes(20 * BLOCK_SIZE + 99)


def changed(*blocks, content=OLD):
    """The content with a byte changed in each of these blocks."""
    data = bytearray(content)
    for index in blocks:
        data[index * BLOCK_SIZE + 5] ^= 0xFF
    return bytes(data)


@pytest.fixture
def world(tmp_path):
    """A world."""
    world = toy.World(tmp_path)
    yield world
    world.fetcher.close()


def test_a_new_version_costs_its_new_blocks_only(world):
    """Of 21 blocks of which three are new, three cross the link; the rest is copied from the version before."""
    world.blobs.put(OLD)
    new = changed(2, 11, 20)
    ref = world.office.offer("weights", new)
    world.fetcher.need("m", (ref,))
    assert world.fetcher._active[ref.sha256].state.counts.reused == 18
    assert world.turns() == [ref.sha256]
    assert world.blobs.get(ref.sha256) == new
    assert world.blocks_sent() == 3


def test_a_file_whose_blocks_are_all_here_costs_nothing(world):
    """The first half of one file and the second of another make a third, without a request."""
    world.blobs.put(changed(*range(10)))
    world.blobs.put(changed(*range(10, 21)))
    ref = world.office.offer("train", OLD)
    world.fetcher.need("m", (ref,))
    assert world.fetcher.completed() == [ref.sha256]
    assert world.broker.published.total() == 0
    assert world.blobs.get(ref.sha256) == OLD


def test_blocks_of_a_version_that_was_overtaken_in_transit_are_kept(world):
    """A version that is superseded half-way leaves its blocks to the next one, in a partial file."""
    first, second = world.office.offer("weights", OLD), world.office.offer("weights", changed(0))
    world.fetcher.need("m", (first,))
    while world.fetcher._active[first.sha256].file.have.bit_count() < 10:
        world.turns(1)
    had = world.fetcher._active[first.sha256].file.have & ~1
    world.fetcher.need("m", (second,))
    assert world.fetcher._active[second.sha256].file.have == had
    assert world.turns() == [second.sha256]


def test_a_damaged_old_file_gives_its_good_blocks_only(world):
    """Blocks are believed by their hash, not by the name of the file that they are in."""
    sha256 = world.blobs.put(OLD)
    path = world.blobs.path(sha256)
    path.write_bytes(changed(3))
    ref = world.office.offer("weights", changed(7))
    world.fetcher.need("m", (ref,))
    assert world.fetcher._active[ref.sha256].state.counts.reused == 19
    assert world.turns() == [ref.sha256]
    assert world.blocks_sent() == 2


def test_a_file_that_changes_behind_the_index_does_no_harm(tmp_path):
    """With the time and size of before but other content, nothing is copied that does not hold."""
    (tmp_path / "blobs").mkdir()
    path = tmp_path / "blobs" / ("ab" * 32)
    path.write_bytes(OLD)
    index = BlockIndex(tmp_path / "blobs")
    times = path.stat()
    with PartialFile(tmp_path / "one", file_ref("weights", changed(0)), reserve=0) as file:
        assert index.fill(file, without=frozenset()) == 20
    path.write_bytes(changed(*range(21)))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with PartialFile(tmp_path / "two", file_ref("weights", changed(1)), reserve=0) as file:
        assert index.fill(file, without=frozenset()) == 0


def test_each_file_is_read_once(tmp_path, monkeypatch):
    """Ten files that want blocks read the old one once, and it again when it has changed."""
    (tmp_path / "blobs").mkdir()
    path = tmp_path / "blobs" / ("ab" * 32)
    path.write_bytes(OLD)
    read = []
    real = reuse._hashes
    monkeypatch.setattr(reuse, "_hashes", lambda path: read.append(path) or real(path))
    index = BlockIndex(tmp_path / "blobs")
    for number in range(10):
        with PartialFile(tmp_path / "part", file_ref("weights", changed(number)), reserve=0) as file:
            assert index.fill(file, without=frozenset()) == 20
    assert read == [path]
    path.write_bytes(OLD + b"more")
    with PartialFile(tmp_path / "part", file_ref("weights", changed(11)), reserve=0) as file:
        index.fill(file, without=frozenset())
    assert read == [path, path]


def test_one_look_reads_no_more_than_its_bound(tmp_path, monkeypatch):
    """Many old files are read over several looks, so that the agent is never away for long; all are found in the end."""
    monkeypatch.setattr(reuse, "MOST_READ", 3 * len(OLD))
    (tmp_path / "blobs").mkdir()
    for number in range(10):
        (tmp_path / "blobs" / f"{number:064x}").write_bytes(changed(number, content=random.Random(number).randbytes(len(OLD))))
    wanted = (tmp_path / "blobs" / f"{9:064x}").read_bytes()
    index, found = BlockIndex(tmp_path / "blobs"), []
    for number in range(4):
        with PartialFile(tmp_path / f"{number}", file_ref("weights", wanted), reserve=0) as file:
            found.append(index.fill(file, without=frozenset()))
    assert found == [0, 0, 0, 21]


def test_memory_of_the_index_is_bounded(tmp_path, monkeypatch):
    """Beyond its bound it remembers nothing new, and what is gone from the disk is forgotten."""
    monkeypatch.setattr(reuse, "MOST_KNOWN", 50)
    (tmp_path / "blobs").mkdir()
    for number in range(10):
        (tmp_path / "blobs" / f"{number:064x}").write_bytes(random.Random(number).randbytes(len(OLD)))
    index = BlockIndex(tmp_path / "blobs")
    with PartialFile(tmp_path / "part", file_ref("weights", OLD), reserve=0) as file:
        index.fill(file, without=frozenset())
        assert sum(map(len, index._known.values())) <= (50 + 21) * 16
        for path in (tmp_path / "blobs").iterdir():
            path.unlink()
        index.fill(file, without=frozenset())
    assert index._known == {}
