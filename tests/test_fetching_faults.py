"""Fetching over a network that is not to be trusted: bad, stale, doubled and endless blocks, slow servers, no link."""

import random

import msgspec
import pytest

import toyfetch as toy
from edgefl.errors import MessageError, SlowRetrievalError
from edgefl.link.memory_broker import Faults
from edgefl.wire.blocks import block_length, file_ref
from edgefl.wire.files import BLOCK_SIZE, Block
from edgefl.wire.messages import MAX_PACKET, encode
from toyfetch import CONTENT, COUNT, REF, served


@pytest.fixture
def world(tmp_path):
    """A world whose server has the file."""
    world = toy.World(tmp_path)
    world.office.offer("weights", CONTENT)
    yield world
    world.fetcher.close()


def piece(index, ref=REF, content=CONTENT):
    """A good block."""
    return Block(ref.sha256[:16], index, content[index * BLOCK_SIZE :][: block_length(ref, index)])


@pytest.mark.parametrize("faults", [Faults(duplicate=0.5), Faults(reorder=0.8), Faults(loss=0.2, duplicate=0.3, reorder=0.5)])
def test_doubled_reordered_and_lost_blocks_do_no_harm(world, faults):
    """Whatever the network does with messages, the file is there, each block stored once."""
    world.broker.faults = faults
    world.fetcher.need("m", (REF,))
    assert world.turns(3000) == [REF.sha256]
    assert world.blobs.get(REF.sha256) == CONTENT


def test_blocks_that_nobody_asked_for_or_of_another_version_are_counted_and_harmless(world):
    """A stale block under the same index, a flipped one, one beyond the end, one of an unknown file: none is stored."""
    old = random.Random(9).randbytes(len(CONTENT))
    stale = file_ref("weights", old)
    world.office.serves = False
    world.fetcher.need("m", (REF,))
    flipped = msgspec.structs.replace(piece(2), data=bytes([piece(2).data[0] ^ 1]) + piece(2).data[1:])
    for block in (
        piece(1, stale, old),
        msgspec.structs.replace(piece(1, stale, old), file=REF.sha256[:16]),
        flipped,
        msgspec.structs.replace(piece(0), index=COUNT + 5),
        msgspec.structs.replace(piece(3), data=piece(3).data[:-1]),
        msgspec.structs.replace(piece(4), data=b"x"),
    ):
        world.fetcher.arrived(encode(block))
    active = world.fetcher._active[REF.sha256]
    assert active.file.have == 0
    assert active.state.counts.damaged == 5
    world.fetcher.arrived(encode(piece(9)))
    world.fetcher.arrived(encode(piece(9)))
    assert (active.state.counts.unasked, active.state.counts.duplicate) == (1, 1)
    world.office.serves = True
    assert world.turns(100) == [REF.sha256]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        bytes(MAX_PACKET + 1),
        msgspec.msgpack.encode([REF.sha256[:16], 0, bytes(BLOCK_SIZE + 1)]),
        msgspec.msgpack.encode([REF.sha256[:16], 1 << 40, b"x"]),
        msgspec.msgpack.encode([REF.sha256, 0, b"x"]),
        b"\x93\xc4\x10" + bytes(16) + b"\x00\xc6\xff\xff\xff\xff",
    ],
    ids=["empty", "garbage", "oversize", "long block", "far index", "long name", "length lies"],
)
def test_endless_data_and_lies_about_lengths_are_refused_before_memory_is_taken(world, payload):
    """What does not decode raises what the agent reports; nothing is written, and the download goes on."""
    world.fetcher.need("m", (REF,))
    with pytest.raises(MessageError):
        world.fetcher.arrived(payload)
    assert world.fetcher.failure() is None
    assert world.turns(60) == [REF.sha256]


def test_more_data_than_promised_never_reaches_the_disk(world):
    """Blocks beyond the end do not make the file longer than its description."""
    world.office.serves = False
    world.fetcher.need("m", (REF,))
    for index in range(COUNT, COUNT + 100):
        world.fetcher.arrived(encode(Block(REF.sha256[:16], index, bytes(BLOCK_SIZE))))
    (path,) = world.partial.iterdir()
    assert path.stat().st_size == REF.length


def test_one_block_a_minute_is_reported_and_the_newest_goes_on(world):
    """The deadline passes: one error with its code; meanwhile a newer version is fetched, and the old one tried again later."""
    newer = world.office.offer("weights", random.Random(8).randbytes(70_000))
    world.office.serves = False
    world.fetcher.need("m", (REF,))
    seconds = 0
    while (trouble := world.fetcher.failure()) is None:
        assert seconds < 3600
        seconds += 10
        if seconds % 60 == 0:
            world.fetcher.arrived(encode(piece(seconds // 60 % COUNT)))
        world.turns(1, seconds=10.0)
    assert isinstance(trouble, SlowRetrievalError)
    assert trouble.code == "slow-retrieval"
    assert 600 < seconds < 1200
    assert world.fetcher._active == {}
    world.office.serves = True
    world.fetcher.need("m", (newer,))
    assert world.turns(20) == [newer.sha256]
    world.fetcher.need("m", (REF,))
    assert world.turns(60) == [REF.sha256]


def test_a_link_that_is_down_is_not_slow(world):
    """A day without a connection is no trouble; afterwards the file comes."""
    world.fetcher.need("m", (REF,))
    world.turns(2)
    world.broker.stop()
    for _ in range(48):
        world.turns(1, seconds=1800.0)
    world.broker.start()
    world.link.poll(0.0)
    world.fetcher.reconnected()
    assert world.turns(60) == [REF.sha256]
    assert world.fetcher.failure() is None


def test_a_version_that_is_overtaken_on_the_way_is_dropped_at_once(world):
    """The newest need alone is fetched; nothing of the other is asked for any more."""
    newer = world.office.offer("weights", random.Random(8).randbytes(5 * BLOCK_SIZE))
    world.fetcher.need("m", (REF,))
    world.turns(2)
    world.fetcher.need("m", (newer,))
    indices = served(world)
    assert world.turns(30) == [newer.sha256]
    assert len(indices) <= 5 + 4
    assert not world.blobs.has(REF.sha256)
