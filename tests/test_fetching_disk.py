"""Fetching onto a disk that is not to be trusted: sudden death at each step, torn writes, damage, no room, no rename."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import toyfetch as toy
from edgefl.device.rests import PAUSE
from edgefl.errors import StoreError
from edgefl.wire.blocks import block_hash, block_length
from edgefl.wire.files import BLOCK_SIZE
from toyfetch import CONTENT, COUNT, REF, served

CHILD = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import toyfetch as toy
from edgefl.wire.files import Block
from edgefl.wire.messages import decode
world = toy.World(Path(sys.argv[2]))
ref = world.office.offer("weights", toy.CONTENT)
log = os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
publish = world.office.link.publish
def logged(topic, payload, **options):
    if "/block" in topic:
        os.write(log, b"%d\\n" % decode(payload, Block).index)
    publish(topic, payload, **options)
world.office.link.publish = logged
world.fetcher.need("m", (ref,))
while ref.sha256 not in world.turns(1):
    time.sleep(0.002)
"""


class Killed(BaseException):
    """The process is dead: nothing catches this, nothing is tidied up."""


@pytest.fixture
def world(tmp_path):
    """A world whose server has the file."""
    world = toy.World(tmp_path)
    world.office.offer("weights", CONTENT)
    yield world
    world.fetcher.close()


def good_blocks(directory):
    """Indices of the blocks of the file that lie on disk, whole."""
    path = directory / f"{REF.sha256.hex()}.part"
    if not path.exists():
        return set()
    data = path.read_bytes()
    return {i for i in range(COUNT) if block_hash(data[i * BLOCK_SIZE :][: block_length(REF, i)]) == REF.blocks[i]}


def test_killed_again_and_again_no_good_block_is_fetched_twice(tmp_path):
    """A process killed with SIGKILL at five moments: what was on disk is never asked for again, and the file is complete."""
    rng, log, root = random.Random(0), tmp_path / "log", tmp_path / "world"
    root.mkdir()
    log.write_bytes(b"")
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(root), str(log)]
    lives = 0
    while not (root / "blobs" / REF.sha256.hex()).exists():
        lives += 1
        assert lives < 12
        had, lines = good_blocks(root / "partial"), log.read_bytes().count(b"\n")
        with subprocess.Popen(command) as child:
            wanted = lines + (rng.randint(1, 4) if lives <= 5 else 1000)
            while child.poll() is None and log.read_bytes().count(b"\n") < wanted:
                time.sleep(0.0005)
            child.send_signal(signal.SIGKILL)
        fetched = {int(line) for line in log.read_bytes().split()[lines:]}
        assert not had & fetched
        assert good_blocks(root / "partial") >= had or (root / "blobs" / REF.sha256.hex()).exists()
    assert lives >= 4
    assert (root / "blobs" / REF.sha256.hex()).read_bytes() == CONTENT


def dies_at(monkeypatch, call):
    """Make the n-th call that changes the disk the last one; a write is torn in the middle."""
    calls, write, sync, rename = [0], os.pwrite, os.fsync, Path.replace

    def due():
        calls[0] += 1
        return calls[0] == call

    def torn(descriptor, data, offset):
        if due():
            write(descriptor, data[: len(data) // 2], offset)
            raise Killed
        return write(descriptor, data, offset)

    def before(work):
        def done(*args):
            if due():
                raise Killed
            return work(*args)

        return done

    monkeypatch.setattr(os, "pwrite", torn)
    monkeypatch.setattr(os, "fsync", before(sync))
    monkeypatch.setattr(Path, "replace", before(rename))
    return calls


def test_death_at_every_change_of_the_disk_costs_the_block_in_hand_at_most(tmp_path):
    """Before each sync, in the middle of each write, before the rename and after it: the next start goes on with what is good."""
    call = 0
    while True:
        call += 1
        world = toy.World(tmp_path / str(call))
        world.office.offer("weights", CONTENT)
        with pytest.MonkeyPatch.context() as patch:
            calls = dies_at(patch, call)
            try:
                world.fetcher.need("m", (REF,))
                world.turns(40)
                survived = True
            except Killed:
                survived = False
        world.fetcher.close()
        if survived:
            break
        good, indices = good_blocks(world.partial), served(world)
        complete = world.blobs.has(REF.sha256)
        world.link.poll(0.0)
        world.start().need("m", (REF,))
        done = world.fetcher.completed() + world.turns(60)
        assert REF.sha256 in done
        assert world.blobs.get(REF.sha256) == CONTENT
        assert not good & set(indices)
        assert not (complete and indices)
        world.fetcher.close()
    assert calls[0] >= COUNT + 3


@pytest.mark.parametrize("damage", ["zeroed", "flipped", "cut"])
def test_damage_on_disk_costs_the_damaged_blocks_only(world, damage):
    """A torn page after a power cut: only what it hit is fetched again."""
    world.fetcher.need("m", (REF,))
    while len(good_blocks(world.partial)) < 10:
        world.turns(1)
    world.fetcher.close()
    (path,) = world.partial.iterdir()
    data = bytearray(path.read_bytes())
    match damage:
        case "zeroed":
            data[3 * BLOCK_SIZE : 4 * BLOCK_SIZE] = bytes(BLOCK_SIZE)
        case "flipped":
            data[3 * BLOCK_SIZE + 77] ^= 4
        case _:
            del data[9 * BLOCK_SIZE :]
    path.write_bytes(data)
    good, indices = good_blocks(world.partial), served(world)
    world.link.poll(0.0)
    world.start().need("m", (REF,))
    assert world.turns(60) == [REF.sha256]
    assert set(indices) <= set(range(COUNT)) - good
    assert world.blobs.get(REF.sha256) == CONTENT


def test_damage_between_last_block_and_rename_costs_that_block(world):
    """A block that goes bad on the card before the file is finished is found by the hash of the whole, and fetched alone."""
    world.fetcher.need("m", (REF,))
    while len(good_blocks(world.partial)) < COUNT - 2:
        world.turns(1)
    (path,) = world.partial.iterdir()
    with path.open("r+b") as file:
        file.seek(2 * BLOCK_SIZE)
        file.write(bytes(100))
    world.turns(20)
    assert "damaged on disk" in str(world.fetcher.failure())
    indices = served(world)
    world.clock.now += PAUSE
    assert world.turns(30) == [REF.sha256]
    assert set(indices) == {2}


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_disk_that_becomes_full_on_the_way_loses_nothing(world, monkeypatch, call):
    """A write or a sync fails: a pause with its reason; what was written stays, and the rest comes when there is room."""
    real, full = getattr(os, call), [False]

    def failing(*args):
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    monkeypatch.setattr(os, call, failing)
    world.fetcher.need("m", (REF,))
    while len(good_blocks(world.partial)) < 5:
        world.turns(1)
    full[0] = True
    world.turns(40)
    trouble = world.fetcher.failure()
    assert isinstance(trouble, StoreError)
    assert "disk full" in str(trouble)
    full[0] = False
    good, indices = good_blocks(world.partial), served(world)
    world.clock.now += PAUSE
    assert world.turns(60) == [REF.sha256]
    assert not good & set(indices)


def test_a_rename_that_fails_is_repeated_without_fetching(world, monkeypatch):
    """At the last step of all nothing is lost but time."""
    real, broken = Path.replace, [True]

    def replace(path, target):
        if broken[0]:
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    world.fetcher.need("m", (REF,))
    assert world.turns(60) == []
    assert "read-only" in str(world.fetcher.failure())
    broken[0] = False
    indices = served(world)
    world.clock.now += PAUSE
    assert world.turns(5) == [REF.sha256]
    assert indices == []
