"""Fetching on a real disk and a broker in memory: what is there, what is damaged, what has no room, what is not answered."""

import errno
import os
import random

import pytest

import toyfetch as toy
from edgefl.device.fetching import ALONE_SECONDS, AT_ONCE
from edgefl.device.rests import LONGEST_PAUSE, PAUSE
from edgefl.errors import LinkError, MessageError
from edgefl.wire import topics
from edgefl.wire.blocks import file_ref
from edgefl.wire.files import BLOCK_SIZE, Block, FileRef
from edgefl.wire.messages import encode
from toyoffice import DEVICE

CONTENT = random.Random(1).randbytes(5 * BLOCK_SIZE + 7)


@pytest.fixture
def world(tmp_path):
    """A world."""
    world = toy.World(tmp_path)
    yield world
    world.fetcher.close()


def test_a_needed_file_is_fetched_verified_and_handed_out_once(world):
    """From nothing to a blob; the partial file is gone and the topic no longer listened to."""
    ref = world.office.offer("train", CONTENT)
    world.fetcher.need("m", (ref,))
    assert world.fetcher.percent("m") == 0
    assert world.turns() == [ref.sha256]
    assert world.blobs.get(ref.sha256) == CONTENT
    assert world.fetcher.percent("m") == 100
    assert not list(world.partial.iterdir())
    assert not world.link._filters
    assert world.turns() == []


def test_a_file_that_is_there_is_handed_out_for_each_need_but_checked_first(world):
    """An intact blob costs no traffic; a damaged one is fetched again."""
    ref = world.office.offer("train", CONTENT)
    world.blobs.put(CONTENT)
    for _ in range(2):
        world.fetcher.need("m", (ref,))
        assert world.fetcher.completed() == [ref.sha256]
    assert world.office.broker.published.total() == 0
    path = world.blobs.path(ref.sha256)
    path.write_bytes(b"\x00" + CONTENT[1:])
    world.fetcher.need("m", (ref,))
    assert world.fetcher.completed() == []
    assert world.turns() == [ref.sha256]
    assert path.read_bytes() == CONTENT


def test_two_models_share_a_file_and_one_may_lose_interest(world):
    """What one model no longer needs goes on for the other, and stops when nobody needs it."""
    ref = world.office.offer("train", CONTENT)
    world.office.serves = False
    world.fetcher.need("a", (ref,))
    world.fetcher.need("b", (ref,))
    world.fetcher.need("a", ())
    assert world.link._filters
    world.fetcher.need("b", ())
    assert not world.link._filters
    world.office.serves = True
    assert world.turns() == []


def test_more_files_than_can_be_fetched_at_once_come_one_after_the_other(world):
    """The number of open files and topics is bounded, and all arrive."""
    refs = tuple(world.office.offer("train", bytes([i]) * 70_000) for i in range(3 * AT_ONCE))
    world.fetcher.need("m", refs)
    assert len(world.link._filters) == AT_ONCE
    assert sorted(world.turns(100)) == sorted(ref.sha256 for ref in refs)


def test_a_restart_goes_on_with_the_blocks_that_are_there(world):
    """What was stored before a sudden death is neither lost nor fetched again."""
    ref = world.office.offer("train", CONTENT)
    world.fetcher.need("m", (ref,))
    while not world.fetcher._active[ref.sha256].state.have:
        world.turns(1)
    stored = world.fetcher._active[ref.sha256].state.have
    world.fetcher.close()
    world.start().need("m", (ref,))
    assert world.fetcher._active[ref.sha256].state.have == stored
    assert world.turns() == [ref.sha256]


def test_without_a_connection_nothing_is_due(world):
    """Requests that wait for an answer do not make the agent's loop spin while the link is down."""
    ref = world.office.offer("train", CONTENT)
    world.office.serves = False
    world.fetcher.need("m", (ref,))
    world.turns(3)
    world.clock.now += 60
    assert world.fetcher.wait() == 0.0
    world.broker.stop()
    assert world.fetcher.wait() > 60


def test_a_full_queue_delays_a_request_and_forgets_nothing(world, monkeypatch):
    """When the link has no room for a request it is made again later."""
    ref = world.office.offer("train", CONTENT)
    publish, full = world.link.publish, [True]

    def crowded(*args, **kwargs):
        if full[0]:
            raise LinkError("no room")
        publish(*args, **kwargs)

    monkeypatch.setattr(world.link, "publish", crowded)
    world.fetcher.need("m", (ref,))
    assert world.turns(10) == []
    full[0] = False
    assert world.turns(400) == [ref.sha256]


def test_a_file_without_room_rests_while_others_go_on(world, monkeypatch):
    """One reason per pause, pauses that double, no pause for the others, and success when there is room."""
    large, small = world.office.offer("train", CONTENT), world.office.offer("eval", b"small")
    real, full = os.posix_fallocate, [True]

    def allocate(descriptor, offset, length):
        if full[0] and length > 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    world.fetcher.need("m", (large, small))
    assert world.turns() == [small.sha256]
    assert "disk full" in str(world.fetcher.failure())
    assert world.fetcher.failure() is None
    told = 0
    for _ in range(4000):
        world.turns(1, seconds=1.0)
        told += bool(world.fetcher.failure())
    assert 6 <= told <= 12
    assert world.fetcher.wait() <= LONGEST_PAUSE
    full[0] = False
    assert world.turns(1000, seconds=1.0) == [large.sha256]


def test_a_file_that_contradicts_its_description_is_not_fetched_for_ever(world):
    """Good blocks under a wrong whole hash: nothing is kept, and each attempt comes later than the one before."""
    honest = file_ref("train", CONTENT)
    lie = FileRef("train", bytes(32), honest.length, honest.blocks)
    world.office.files[lie.sha256] = (lie, CONTENT)
    world.fetcher.need("m", (lie,))
    assert world.turns(2000, seconds=1.0) == []
    assert "wrong hash" in str(world.fetcher.failure())
    assert world.broker.delivered_bytes.total() < 12 * len(CONTENT)
    assert not world.blobs.has(lie.sha256)
    assert PAUSE < LONGEST_PAUSE


def test_tidying_removes_what_nobody_keeps_and_nothing_else(world):
    """Partial files by name; a file of another kind, and one that cannot be a hash, are no trouble."""
    world.partial.mkdir()
    for name in (f"{'ab' * 32}.part", f"{'cd' * 32}.part", "nonsense.part", "notes.txt"):
        (world.partial / name).write_text("x")
    world.fetcher.tidy({bytes.fromhex("cd" * 32)})
    assert sorted(path.name for path in world.partial.iterdir()) == [f"{'cd' * 32}.part", "notes.txt"]


def test_garbage_instead_of_a_block_is_refused_and_harmless(world):
    """It raises what the agent reports; the download goes on."""
    ref = world.office.offer("train", CONTENT)
    world.fetcher.need("m", (ref,))
    with pytest.raises(MessageError):
        world.fetcher.arrived(b"\xc1")
    assert world.turns() == [ref.sha256]


def flooded(world, ref):
    """Two seconds apart, blocks come that others have asked for, until the device leaves them."""
    world.office.serves = False
    for index in (3, 4, 3, 4, 3, 4, 3, 4):
        world.fetcher.arrived(encode(Block(ref.sha256[:16], index, CONTENT[index * BLOCK_SIZE :][:BLOCK_SIZE])))
        world.clock.now += 2.0
    world.office.serves = True


def test_a_drowned_device_is_served_on_its_own_topic_for_an_hour(world):
    """It leaves the file's topic, completes alone, begins the next file alone, and after an hour is with the others again."""
    ref, other, third = (world.office.offer(role, data) for role, data in (("a", CONTENT), ("b", b"b" * 99), ("c", b"c" * 99)))
    world.fetcher.need("m", (ref,))
    world.turns(1)
    flooded(world, ref)
    assert topics.own_block(DEVICE) in world.link._filters
    assert topics.block(ref.sha256.hex()) not in world.link._filters
    assert world.turns(100) == [ref.sha256]
    assert world.office.alone > 0
    assert world.blobs.get(ref.sha256) == CONTENT
    world.clock.now += ALONE_SECONDS - 60.0
    asked = world.office.alone
    world.fetcher.need("m", (other,))
    assert world.turns() == [other.sha256]
    assert world.office.alone == asked + 1
    world.clock.now += 60.0
    world.fetcher.need("m", (third,))
    assert world.turns() == [third.sha256]
    assert world.office.alone == asked + 1


def test_a_slow_link_full_of_useless_blocks_is_made_anew(world):
    """What the broker still has for it after the file is there would delay everything else: a new connection sheds it, once."""
    ref = world.office.offer("a", CONTENT)
    world.fetcher.need("m", (ref,))
    assert world.turns() == [ref.sha256]
    restarts, restart = [], world.link.restart
    world.link.restart = lambda: (restarts.append(world.clock.now), restart())
    stale = encode(Block(ref.sha256[:16], 0, CONTENT[:BLOCK_SIZE]))
    for _ in range(100):
        world.fetcher.arrived(stale)
        world.clock.now += 0.01
    assert restarts == []
    for _ in range(60):
        world.clock.now += 2.0
        world.fetcher.arrived(stale)
    assert len(restarts) == 1
    other = world.office.offer("b", CONTENT[::-1])
    world.link.poll(0.0)
    world.fetcher.need("m", (other,))
    assert world.turns(60) == [other.sha256]


def test_what_others_ask_for_is_no_waste_while_this_device_listens(world):
    """Blocks sent again for somebody else must not cost this device its connection, with all that is under way on it."""
    content = CONTENT * 4
    ref = world.office.offer("a", content)
    world.office.serves = False
    world.fetcher.need("m", (ref,))
    world.turns(2)
    restarts = []
    world.link.restart = lambda: restarts.append(world.clock.now)
    for index in (*range(15), *[0] * 12):
        world.clock.now += 2.0
        world.fetcher.arrived(encode(Block(ref.sha256[:16], index, content[index * BLOCK_SIZE :][:BLOCK_SIZE])))
    assert restarts == []
