"""A board whose connection fails, loses messages or takes little at a time: it costs time only."""

import random
from functools import partial

import msgspec
import numpy as np
import pytest

from edgefl.codec.weights import Precision, encode_weights
from edgefl.engine.contract import Trained
from edgefl.layout import Layout, Tensor
from edgefl.link.contract import Refused
from edgefl.link.memory import MemoryLink
from edgefl.link.memory_broker import Faults
from edgefl.wire.rounds import PART_SIZE
from toyagent import scripted, trainer
from toyoffice import TASK
from toytrainer import ScriptedEngine, delta_of


@pytest.fixture
def board(tmp_path, monkeypatch):
    """A board that has never heard of any model, with a scripted engine."""
    with scripted(tmp_path, monkeypatch) as board:
        yield board


def test_an_update_waits_for_its_receipt_in_ever_longer_pauses(board):
    """Without an answer it is sent again and again, but not as often as time goes by; the receipt ends it."""
    board.office.receipts = "silent"
    board.office.manifest()
    board.office.order(1)
    board.start().run(lambda: board.office.updates[1])
    began = board.clock.now
    board.run(lambda: board.clock.now > began + 1000, turns=3000, seconds=0.5)
    assert 4 <= len(board.office.updates[1]) <= 8
    board.office.receipts = "store"
    board.run(lambda: board.session.work is None, turns=3000, seconds=0.5)
    assert len(board.office.sent(1)) == 1


def test_nothing_piles_up_while_the_broker_is_away(board):
    """Hours without a connection: neither updates nor reports fill the queue, and the loop does not spin."""
    board.office.receipts = "silent"
    board.office.manifest()
    board.office.order(1)
    board.start().run(lambda: board.office.updates[1])
    before = len(board.office.updates[1])
    board.broker.stop()
    board.turns(2000, seconds=5.0)
    assert board.link.outgoing < 2000
    assert board.agent._wait() > 0.0
    board.broker.start()
    board.office.receipts = "store"
    board.run(lambda: board.session.work is None)
    assert len(board.office.updates[1]) == before + 1


def test_an_interrupted_download_does_not_spin_while_offline(board):
    """With a request outstanding and no connection there is nothing to do, and the loop sleeps."""
    board.office.serves = False
    board.office.manifest()
    board.start().run(lambda: board.agent._hands.fetcher._active)
    board.broker.stop()
    board.turns(50, seconds=1.0)
    assert board.agent._wait() > 0.5


def test_a_large_update_is_sent_in_pieces_that_the_queue_can_take(board, monkeypatch):
    """An update larger than the link's whole queue arrives all the same, once."""
    large = Layout((Tensor("w", (700, 1000)),))
    data = np.random.default_rng(0).normal(size=large.size).astype(np.float32)

    class Large(ScriptedEngine):
        def train(self, *_, **__):
            self._vector = self._vector + data
            return Trained(1, 1.0, 0.5)

    monkeypatch.setattr("edgefl.device.trainer.open_engine", Large)
    board.connect = partial(MemoryLink, budget=5 * PART_SIZE)
    weights = encode_weights(np.zeros(large.size, np.float32), large, Precision.FP32)
    board.config = msgspec.structs.replace(board.config, storage_kib=65536)
    files = tuple(board.office.offer(role, content) for role, content in (("train", b"train"), ("weights", weights)))
    board.office.manifest(layout=large, files=files)
    board.office.order(1, task=msgspec.structs.replace(TASK, sparsity=1.0, bits=8), vector=np.zeros(large.size), layout=large)
    board.start().run(lambda: board.office.updates[1] and board.session.work is None)
    ((head, sent),) = board.office.updates[1]
    assert head.parts > 6
    assert len(sent) > 5 * PART_SIZE


@pytest.mark.parametrize("place", range(0, 60, 3))
def test_a_connection_that_breaks_at_any_turn_costs_nothing(board, place):
    """In the middle of a download, a training or an update: messages to the board are lost, and each round is still done once."""
    board.office.manifest()
    board.start()
    trainer(board).patience = 3
    passed = [0]

    def breaking(until):
        def check():
            passed[0] += 1
            if passed[0] == place:
                board.link.drop()
            return until()

        return check

    for number in (1, 2):
        board.office.order(number)
        board.run(breaking(lambda n=number: board.office.updates[n] and board.session.work is None), turns=3000)
    board.office.manifest(2, graphs={"train": bytes(300_000)})
    board.run(breaking(lambda: board.active() == 2), turns=3000)
    sent = board.office.sent(1) + board.office.sent(2)
    assert len(sent) == 2


def test_a_bad_network_costs_time_only(board):
    """Messages lost, doubled and overtaken in both directions: every round's update arrives, and the residual law holds."""
    board.broker.faults = Faults(loss=0.2, duplicate=0.2, reorder=0.2)
    announce = partial(board.office.manifest, graphs={"train": bytes(range(256)) * 800})
    announce()
    board.start().run(lambda: repeat(board, announce) or board.active(), turns=20_000, seconds=0.2)
    for number in (1, 2, 3):
        board.office.order(number)
        say = partial(board.office.order, number)
        done = partial(settled, board, number)
        board.run(lambda say=say, done=done: repeat(board, say) or done(), turns=20_000, seconds=0.2)
    sent = [board.office.sent(number) for number in (1, 2, 3)]
    assert [len(updates) for updates in sent] == [1, 1, 1]
    np.testing.assert_allclose(sum(u[0] for u in sent) + board.residual(), sum(map(delta_of, (1, 2, 3))), atol=1e-3)


def repeat(board, say):
    """Say something again now and then, as a server that connects anew; retained messages may be lost too here."""
    if random.Random(board.clock.now).random() < 0.02:
        say()
    return False


def settled(board, number):
    """Whether a round's update has arrived and is done with."""
    return board.office.updates[number] and board.session.work is None


def test_a_refused_subscription_is_told(board):
    """A broker that keeps the device from its orders is reported, for somebody to look at its rules."""
    board.start().turns(2)
    board.agent._on_link(Refused("efl/v1/all/manifest/+/toy-profile"))
    board.turns(2)
    assert "does not let this device subscribe" in board.office.errors()[0]


def test_death_and_birth_are_told(board):
    """The broker tells the death of a board that vanishes, and the board its next birth with a higher number."""
    board.office.manifest()
    board.start().run(board.active)
    board.lose()
    board.office.turn()
    assert (board.office.states[-1].online, board.office.states[-1].session) == (False, 1)
    board.start().turns(3)
    assert (board.office.states[-1].online, board.office.states[-1].session) == (True, 2)
