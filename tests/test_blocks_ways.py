"""Ways to a version's files, through the server's loop and the whole agent: alone, limited, as a difference, from a stick."""

import random
import time

import numpy as np
import pytest

import toyboard as board_toy
import toyfleet as fleet_toy
from edgefl.codec.difference import encode_difference
from edgefl.codec.weights import Precision, encode_weights
from edgefl.errors import MessageError
from edgefl.link.contract import Arrived
from edgefl.server.askers import REQUEST_BURST
from edgefl.server.blocks import BlockServer, Rates
from edgefl.store.blobs import BlobStore
from edgefl.wire import topics
from edgefl.wire.blocks import file_ref, want
from edgefl.wire.files import BLOCK_SIZE, Block, Difference, Want
from edgefl.wire.messages import decode, encode
from toytrainer import LAYOUT, InlineTrainer, ScriptedEngine

CONTENT = random.Random(6).randbytes(10 * BLOCK_SIZE)
REF = file_ref("weights", CONTENT)


def request(*indices, alone=False):
    """A request for these blocks."""
    asked = want(REF, indices)
    return Want(asked.sha256, asked.first, asked.bitmap, alone)


class Counter:
    """A block server with one file and a list of what it has published."""

    def __init__(self, root, **rates):
        """Offer the file."""
        blobs = BlobStore(root)
        blobs.put(CONTENT)
        self.sent = []
        self.server = BlockServer(blobs, lambda *message: self.sent.append(message), lambda: 1 << 20, Rates(**rates))
        self.server.offer({REF.sha256: ("m", REF)})

    def advance(self, until, start=0.0):
        """Let the time pass."""
        now = start
        while now < until:
            self.server.advance(now)
            now += 0.01


def test_what_is_asked_alone_is_published_on_the_devices_own_topic(tmp_path):
    """The blocks of a device that is alone reach it and nobody else, counted for the model."""
    counter = Counter(tmp_path)
    counter.server.wanted("cam-01", request(2, 3, alone=True), 0.0)
    counter.server.wanted("cam-02", request(3), 0.0)
    counter.advance(0.2)
    assert [(model, topic, decode(payload, Block).index) for model, topic, payload in counter.sent] == [
        ("m", "efl/v1/down/cam-01/block", 2),
        ("m", "efl/v1/down/cam-01/block", 3),
        ("m", topics.block(REF.sha256.hex()), 3),
    ]
    assert (counter.server.counts.sent, counter.server.counts.alone) == (3, 2)


def test_rates_are_kept_on_the_wire(tmp_path):
    """Ten blocks at 64 KB/s take five seconds for a device that is alone, and at 100 KB/s three for everybody."""
    for rates, alone, least in (({"device": 64e3}, True, 4.5), ({"everybody": 100e3}, False, 2.7)):
        counter = Counter(tmp_path / str(alone), **rates)
        counter.server.wanted("cam-01", request(*range(10), alone=alone), 0.0)
        counter.advance(least)
        assert 8 <= len(counter.sent) < 10
        counter.advance(least + 1.0, start=least)
        assert len(counter.sent) == 10


def test_a_flood_of_requests_is_refused_by_name(tmp_path):
    """The server says who it is, and goes on for the others."""
    counter = Counter(tmp_path)
    refused = []
    for _ in range(1000):
        try:
            counter.server.wanted("cam-66", request(0), 0.0)
        except MessageError as error:
            refused.append(str(error))
    assert len(refused) == 1000 - REQUEST_BURST
    assert "cam-66" in refused[0]
    assert "too many requests" in refused[0]
    counter.server.wanted("cam-01", request(1), 0.0)
    counter.advance(0.2)
    assert sorted(decode(payload, Block).index for _, _, payload in counter.sent) == [0, 1]


def test_running_server_answers_alone_beside_the_multicast(tmp_path):
    """Through the service: own topic for who asks alone, the file's for the others, and the bytes in the fleet's counters."""
    fleet = fleet_toy.ToyFleet(tmp_path)
    fleet.provision(a="big", b="big")
    fleet.push()
    server, slow, fast = fleet.serve(), fleet.device("a"), fleet.device("b")
    ref = next(ref for record in server.service._catalogue.announced if record.profile == "big" for ref in record.manifest.files)
    slow.link.subscribe(topics.own_block("a"))
    fast.link.subscribe(topics.block(ref.sha256.hex()))
    asked = want(ref, [0])
    slow.link.publish(topics.want("a"), encode(Want(asked.sha256, asked.first, asked.bitmap, alone=True)))
    fast.link.publish(topics.want("b"), encode(asked))
    for link in (slow.link, fast.link):
        link.poll(0.0)
    server.turns(3, seconds=0.2)
    for device in (slow, fast):
        (event,) = [event for event in device.link.poll(0.0) if isinstance(event, Arrived)]
        assert event.topic == (topics.own_block("a") if device is slow else topics.block(ref.sha256.hex()))
        assert decode(event.payload, Block).index == 0


# Through the agent


@pytest.fixture
def board(tmp_path, monkeypatch):
    """A board that holds the first version."""
    monkeypatch.setattr("edgefl.device.hands.TrainerProcess", InlineTrainer)
    monkeypatch.setattr("edgefl.device.trainer.open_engine", ScriptedEngine)
    board = board_toy.Board(tmp_path)
    board.office.manifest(1)
    board.start().run(lambda: board.active() == 1)
    yield board
    if board.agent:
        board.lose()


def second(board, **changes):
    """Announce a second version whose weights differ in three places; the files of it."""
    vector = np.zeros(LAYOUT.size, dtype=np.float32)
    vector[[3, 70, 200]] = 0.5
    old, new = (encode_weights(v, LAYOUT, Precision.FP32) for v in (np.zeros_like(vector), vector))
    weights = board.office.offer("weights", new)
    way = Difference(file_ref("weights", old).sha256, board.office.offer("difference", encode_difference(old, new, LAYOUT)))
    files = (*(board.office.offer(role, b"%s of 2" % role.encode()) for role in ("train", "eval", "infer")), weights)
    board.office.manifest(2, files=files, **{name: change(way) for name, change in changes.items()})
    return files, way, new


def test_a_version_comes_as_a_difference(board):
    """The agent rebuilds the weights from those of the version before; the whole file never crosses the link."""
    files, way, new = second(board, differences=lambda way: (way,))
    board.run(lambda: board.active() == 2)
    assert board.agent._hands.blobs.get(files[-1].sha256) == new
    assert board.broker.delivered[topics.block(files[-1].sha256.hex())] == 0
    assert board.broker.delivered[topics.block(way.file.sha256.hex())] == 1
    board.turns(5)
    assert not board.agent._hands.blobs.has(way.file.sha256)


def test_a_version_survives_a_sudden_death_between_difference_and_weights(board):
    """The base is still there after the restart, and the version is completed."""
    files, way, new = second(board, differences=lambda way: (way,))
    board.run(lambda: board.agent._hands.fetcher._active)
    board.lose()
    (board.state / "blobs" / way.file.sha256.hex()).write_bytes(board.office.files[way.file.sha256][1])
    board.start().run(lambda: board.active() == 2)
    assert board.agent._hands.blobs.get(files[-1].sha256) == new


def test_a_version_comes_from_a_stick(board, tmp_path):
    """A directory on the board that the manifest names; nothing of the files crosses the link."""
    stick = tmp_path / "stick"
    stick.mkdir()
    files, _, _ = second(board, sources=lambda _: (f"file://{stick}",))
    for ref in files:
        (stick / ref.sha256.hex()).write_bytes(board.office.files[ref.sha256][1])
    board.lose()
    board.broker.delivered.clear()
    board.start()
    for _ in range(400):
        board.turn(0.0)
        if board.active() == 2:
            break
        time.sleep(0.005)  # a thread reads the stick
    assert board.active() == 2
    assert not [topic for topic in board.broker.delivered if "/block" in topic]


def test_slow_retrieval_is_reported_with_its_code(board):
    """The server learns the word that a program can tell apart."""
    board.office.serves = False
    second(board)
    board.run(lambda: "slow-retrieval" in [report.code for report in board.office.reports], turns=4000, seconds=0.5)
