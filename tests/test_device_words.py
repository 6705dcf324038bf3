"""What a device says: updates in parts, births, reports, and troubles that do not become a flood."""

import hashlib

import pytest

import toyboard as toy
from edgefl.device.sending import WINDOW, UpdateSender
from edgefl.device.voice import TOLD_AGAIN, Voice
from edgefl.errors import StoreError
from edgefl.link.contract import Arrived
from edgefl.link.memory import MemoryLink
from edgefl.link.memory_broker import MemoryBroker
from edgefl.store.outbox import OutboxEntry, write_outbox
from edgefl.wire import topics
from edgefl.wire.messages import MAX_PACKET, decode
from edgefl.wire.rounds import PART_SIZE, UpdatePart
from toyoffice import DEVICE

UPDATE = bytes(range(256)) * 8000


@pytest.fixture
def broker():
    """A broker."""
    return MemoryBroker()


@pytest.fixture
def link(broker):
    """The device's link, connected."""
    link = MemoryLink(broker, DEVICE)
    link.poll(0.0)
    return link


@pytest.fixture
def heard(broker):
    """What the server gets: called, the parts since the last call."""
    server = MemoryLink(broker, "edgefl-server", clean_session=False)
    server.subscribe(topics.ALL_UP)
    server.poll(0.0)
    return lambda: [decode(e.payload, UpdatePart) for e in server.poll(0.0) if isinstance(e, Arrived)]


def outbox(path, update=UPDATE):
    """Write an outbox; the update's hash."""
    sha256 = hashlib.sha256(update).digest()
    write_outbox(path, OutboxEntry(1, "w1-fp32", 4, "x", 9, 2.0, 1.0, sha256, len(update), 0), update, b"")
    return sha256


def deliver(sender, link, heard):
    """Let everything leave."""
    parts = []
    for _ in range(100):
        link.poll(0.0)
        sender.advance()
        parts += heard()
    return parts


def test_an_update_leaves_in_parts_that_fit_packets_and_join_to_the_whole(tmp_path, link, heard):
    """And the queue never holds more than the window and a part."""
    sha256, sender = outbox(tmp_path / "outbox"), UpdateSender(DEVICE, link)
    sender.send("m", tmp_path / "outbox", sha256)
    assert 0 < link.outgoing <= WINDOW + MAX_PACKET
    assert sender.busy
    parts = deliver(sender, link, heard)
    assert not sender.busy
    assert [part.part for part in parts] == list(range(-(-len(UPDATE) // PART_SIZE)))
    assert {(part.parts, part.round, part.samples, part.sha256) for part in parts} == {(len(parts), 4, 9, sha256)}
    assert b"".join(part.data for part in parts) == UPDATE


def test_an_update_on_its_way_is_not_sent_again(tmp_path, link, heard):
    """Neither while parts wait, nor while the link still has some, nor because the connection broke meanwhile."""
    sha256, sender = outbox(tmp_path / "outbox"), UpdateSender(DEVICE, link)
    for _ in range(3):
        sender.send("m", tmp_path / "outbox", sha256)
    link.drop()
    link.poll(0.0)
    link.poll(0.0)
    sender.send("m", tmp_path / "outbox", sha256)
    parts = deliver(sender, link, heard)
    assert len(parts) == -(-len(UPDATE) // PART_SIZE)
    sender.send("m", tmp_path / "outbox", sha256)
    assert len(deliver(sender, link, heard)) == len(parts), "but when all has left it is"


def test_offline_nothing_is_queued(tmp_path, broker, link):
    """The connection will ask for it; until then the queue stays empty, even if the outbox is gone."""
    sha256, sender = outbox(tmp_path / "outbox"), UpdateSender(DEVICE, link)
    broker.stop()
    sender.send("m", tmp_path / "outbox", sha256)
    sender.send("m", tmp_path / "nothing", sha256)
    assert (link.outgoing, sender.busy) == (0, False)


def test_a_forgotten_update_stops_in_the_middle(tmp_path, link, heard):
    """After the receipt for an earlier copy the rest of a later one is not sent; another update is."""
    sha256, sender = outbox(tmp_path / "outbox"), UpdateSender(DEVICE, link)
    sender.send("m", tmp_path / "outbox", sha256)
    sender.forget("m")
    assert len(deliver(sender, link, heard)) < len(UPDATE) // PART_SIZE
    other = outbox(tmp_path / "outbox", b"another")
    sender.send("m", tmp_path / "outbox", other)
    assert [part.data for part in deliver(sender, link, heard)] == [b"another"]


def test_an_outbox_without_the_update_is_an_error(tmp_path, link):
    """Missing, damaged, or holding another one: the agent has to know."""
    sender = UpdateSender(DEVICE, link)
    with pytest.raises(StoreError, match="does not hold the update"):
        sender.send("m", tmp_path / "outbox", bytes(32))
    outbox(tmp_path / "outbox")
    with pytest.raises(StoreError, match="does not hold the update"):
        sender.send("m", tmp_path / "outbox", bytes(32))


@pytest.fixture
def spoken(tmp_path):
    """A voice, the server that hears it, and a clock."""
    board = toy.Board(tmp_path)
    link = MemoryLink(board.broker, DEVICE)
    link.poll(0.0)
    voice = Voice(board.config, link, 1, memory=lambda: 77, clock=board.clock.monotonic)

    def errors():
        link.poll(0.0)
        board.office.turn()
        return board.office.errors()

    return voice, errors, board


def test_the_same_trouble_is_told_once_in_a_while(spoken):
    """Every second for an hour: a handful of reports."""
    voice, errors, board = spoken
    for _ in range(3600):
        voice.trouble("m", "the disk is full")
        board.clock.now += 1.0
    assert len(errors()) == 3600 // TOLD_AGAIN


def test_a_flood_of_different_troubles_is_thinned_out(spoken):
    """Garbage that differs each time, a thousand times a second: a report now and then, cut to what fits."""
    voice, errors, board = spoken
    for number in range(5000):
        voice.trouble("", f"{number}: " + "x" * 2000)
        board.clock.now += 0.001
    assert 1 <= len(errors()) <= 4
    assert max(map(len, errors())) <= 500
    assert {report.model for report in board.office.reports} == {"none"}


def test_a_full_queue_silences_and_does_not_raise(spoken):
    """Saying something never fails for the caller."""
    _, _, board = spoken
    narrow = MemoryLink(board.broker, "narrow", budget=10)
    voice = Voice(board.config, narrow, 1, memory=lambda: 0, clock=board.clock.monotonic)
    voice.birth([])
    voice.report("m", 1, 1, "training")
    assert narrow.outgoing == 0
