"""Files from a web server or a stick: fetched, resumed, checked block by block, bounded; and over MQTT when that fails."""

import os
import random
import select
import threading
import time
from pathlib import Path

import pytest

import toyfetch as toy
from edgefl.device.mirror import Bell, SourceFetch
from edgefl.device.supply import REST_SECONDS
from edgefl.device.ways import Ways
from edgefl.errors import BlockError, EndlessDataError, LinkError, MessageError, SlowRetrievalError
from edgefl.store.partial import PartialFile
from edgefl.wire.blocks import file_ref
from edgefl.wire.files import BLOCK_SIZE
from moodysite import Site

CONTENT = random.Random(2).randbytes(12 * BLOCK_SIZE + 345)
REF = file_ref("weights", CONTENT)
NAME = REF.sha256.hex()


@pytest.fixture(scope="module")
def shared_site(tmp_path_factory):
    """One server for all tests."""
    site = Site(tmp_path_factory.mktemp("site"), {NAME: CONTENT})
    yield site
    site.close()


@pytest.fixture
def site(shared_site, monkeypatch):
    """The server as new."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    shared_site.mood, shared_site.wasted = "plain", 0
    shared_site.requests.clear()
    return shared_site


@pytest.fixture
def world(tmp_path, site):
    """A world whose device believes the web server, and whose server has the file."""
    world = toy.World(tmp_path)
    world.fetcher.close()
    world.start(context=site.context)
    world.office.offer("weights", CONTENT)
    yield world
    world.fetcher.close()


def need(world, *sources):
    """State the need for the file, with these sources."""
    world.fetcher.need("m", (REF,), Ways(sources=sources, files=frozenset({REF.sha256})))


def fetched(world):
    """Wait until the file is there; it is what it should be."""
    world.until(lambda done: REF.sha256 in done)
    assert world.blobs.get(REF.sha256) == CONTENT
    assert world.fetcher.failure() is None


def read(source, have=0, ref=REF, **options):
    """What a source delivers without a fetcher: the blocks, and the error."""
    bell = Bell()
    fetch = SourceFetch(source, ref, have, ring=bell.ring, **options)
    blocks = {}
    while not fetch.done:
        assert select.select([bell.descriptor], [], [], 10.0)[0], "the bell was not rung"
        bell.silence()
        blocks.update(fetch.take())
    bell.close()
    return blocks, fetch.error


def test_a_web_server_delivers_everything(world, site):
    """One request to the web server, no block from the fleet's."""
    need(world, site.address)
    fetched(world)
    assert site.requests == [(f"/{NAME}", "")]
    assert world.broker.published.total() == 0


def test_a_web_server_is_asked_for_the_rest_only(world, site):
    """What is on disk from before a restart is neither asked for nor read again."""
    with PartialFile(world.partial, REF, reserve=0) as file:
        for index in (0, 1, 2, 5, 6, 12):
            file.write(index, CONTENT[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE])
    need(world, site.address)
    fetched(world)
    ranges = [f"bytes={first * BLOCK_SIZE}-{(last + 1) * BLOCK_SIZE - 1}" for first, last in ((3, 4), (7, 11))]
    assert site.requests == [(f"/{NAME}", part) for part in ranges]
    assert world.broker.published.total() == 0


def test_many_holes_are_one_request(site):
    """A file of which every other block is there is read once through."""
    have = sum(1 << index for index in range(1, 40, 2))
    content = random.Random(3).randbytes(40 * BLOCK_SIZE)
    ref = file_ref("weights", content)
    site.files[ref.sha256.hex()] = content
    blocks, error = read(site.address, have, ref, context=site.context)
    assert error is None
    assert sorted(blocks) == list(range(0, 40, 2))
    assert len(site.requests) == 1


@pytest.mark.parametrize("mood", ["damaged", "truncated", "missing", "downgrading", "too_long", "another_part"])
def test_a_bad_web_server_costs_time_and_nothing_else(world, site, mood, monkeypatch):
    """Whatever the web server does, the file is there in the end, by MQTT, and what was good is not fetched twice."""
    site.mood = mood
    if mood == "missing":
        monkeypatch.setattr(site, "files", {})
    need(world, site.address)
    fetched(world)
    good = {"damaged": 5, "truncated": 5}.get(mood, 0)
    assert world.blocks_sent() == len(REF.blocks) - good
    assert len(site.requests) == 1


def test_a_source_that_has_failed_rests(world, site, monkeypatch):
    """A server without the files delays the first file only; after a while it is asked again."""
    monkeypatch.setattr(site, "files", {})
    need(world, site.address)
    fetched(world)
    for seconds, requests in ((1.0, 1), (REST_SECONDS, 2)):
        world.clock.now += seconds
        world.blobs.path(REF.sha256).unlink()
        need(world, site.address)
        fetched(world)
        assert len(site.requests) == requests


def test_the_next_source_goes_on_where_the_first_failed(world, site, tmp_path):
    """A stick that is not plugged in, a web server that breaks off, another that delivers."""
    stick = tmp_path / "stick"
    stick.mkdir()
    (stick / NAME).write_bytes(CONTENT)
    site.mood = "truncated"
    need(world, f"file://{tmp_path}/nothing", site.address, f"file://{stick}")
    fetched(world)
    assert world.broker.published.total() == 0


def test_endless_data_is_cut_off(site):
    """A body without an end is read to the promised length and a byte, and the error says what it is."""
    site.mood = "endless"
    blocks, error = read(site.address, context=site.context)
    assert len(blocks) == len(REF.blocks)
    assert isinstance(error, EndlessDataError)
    time.sleep(0.2)
    assert site.wasted < 16 << 20


@pytest.mark.parametrize(
    ("mood", "have", "kind"),
    [
        ("damaged", 0, BlockError),
        ("truncated", 0, (BlockError, LinkError)),
        ("too_long", 0, EndlessDataError),
        ("downgrading", 0, LinkError),
        ("another_part", 1, MessageError),
    ],
)
def test_each_fault_has_its_error(site, mood, have, kind):
    """What went wrong is named."""
    site.mood = mood
    assert isinstance(read(site.address, have, context=site.context)[1], kind)


def test_a_trickle_is_too_slow(site):
    """A byte now and then keeps no file waiting."""
    site.mood = "trickling"
    blocks, error = read(site.address, context=site.context, block_seconds=0.3)
    assert blocks == {}
    assert isinstance(error, SlowRetrievalError)


@pytest.mark.parametrize("mood", ["without_ranges", "moved", "plain"])
def test_servers_without_ranges_and_moved_files_are_understood(site, mood):
    """Only missing blocks come, whether the server sends a part or everything, here or elsewhere over HTTPS."""
    site.mood = mood
    have = sum(1 << index for index in (0, 1, 2, 5))
    blocks, error = read(site.address, have, context=site.context)
    assert error is None
    assert sorted(blocks) == [3, 4, *range(6, len(REF.blocks))]
    assert all(blocks[i] == CONTENT[i * BLOCK_SIZE : (i + 1) * BLOCK_SIZE] for i in blocks)


def test_an_unknown_authority_is_not_believed(site):
    """Without the authority's certificate nothing is read."""
    blocks, error = read(site.address)
    assert blocks == {}
    assert isinstance(error, LinkError)
    assert site.requests == []


def test_a_source_that_never_answers_is_given_up(world, monkeypatch):
    """A thread that hangs where no timeout reaches it: after two minutes the file is fetched over MQTT."""
    hang = threading.Event()
    monkeypatch.setattr(SourceFetch, "_open", lambda *_: hang.wait(30.0))
    need(world, "file:///anywhere")
    assert world.turns(3, seconds=60.0) == []
    assert world.turns(40) == [REF.sha256]
    hang.set()


def test_a_stick_delivers_everything(world, tmp_path):
    """A directory with the file under its hash; blocks that are there are left out."""
    (tmp_path / NAME).write_bytes(CONTENT)
    need(world, f"file://{tmp_path}")
    fetched(world)
    assert world.broker.published.total() == 0


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (Path.is_file, LinkError),
        (lambda path: path.write_bytes(CONTENT + b"x"), EndlessDataError),
        (lambda path: path.write_bytes(CONTENT[:-1]), BlockError),
        (lambda path: path.write_bytes(bytes(len(CONTENT))), BlockError),
        (lambda path: path.mkdir(), (BlockError, EndlessDataError)),
        (os.mkfifo, BlockError),
        (lambda path: path.symlink_to("/dev/zero"), BlockError),
    ],
    ids=["missing", "longer", "shorter", "zeros", "directory", "pipe", "device"],
)
def test_what_else_may_lie_on_a_stick_is_refused(tmp_path, make, kind):
    """Another file, no file, or something without an end: an error that says so, at once."""
    make(tmp_path / NAME)
    blocks, error = read(f"file://{tmp_path}")
    assert blocks == {}
    assert isinstance(error, kind)


def test_a_file_that_nobody_needs_any_more_ends_its_thread(world, site):
    """The need goes while a slow server delivers: the thread ends, and nothing is written any more."""
    site.mood = "trickling"
    need(world, site.address)
    (fetch,) = world.fetcher._supply._running.values()
    assert world.fetcher.wake
    world.fetcher.need("m", ())
    fetch._thread.join(60)
    assert not fetch._thread.is_alive()
    assert world.fetcher.wake == ()
    assert world.turns(5) == []


def test_a_slow_reader_bounds_what_waits(tmp_path):
    """An agent that is busy finds no more than a few blocks in memory."""
    (tmp_path / NAME).write_bytes(CONTENT)
    fetch = SourceFetch(f"file://{tmp_path}", REF, 0, ring=lambda: None)
    time.sleep(0.2)
    assert fetch._blocks.qsize() <= 4
    fetch.cancel()
    fetch._thread.join(60)
    assert not fetch._thread.is_alive()
