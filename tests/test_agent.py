"""The agent on a broker in memory: what a board makes of versions, orders, updates and receipts."""

import msgspec
import numpy as np
import pytest

from edgefl.device import rounds
from edgefl.store.blobs import BlobStore
from edgefl.wire import topics
from edgefl.wire.messages import encode
from edgefl.wire.rounds import Receipt
from toyagent import scripted, trained, trainer
from toyoffice import DEVICE, MODEL
from toytrainer import delta_of


@pytest.fixture
def board(tmp_path, monkeypatch):
    """A board that has never heard of any model, with a scripted engine."""
    with scripted(tmp_path, monkeypatch) as board:
        yield board


def test_a_round_goes_from_order_to_receipt(board):
    """A version is announced, fetched and activated; the round's update arrives once and its residual is kept."""
    board.office.manifest()
    trained(board.start(), 1)
    assert [s for s in board.office.steps() if s != "fetching"] == ["trial", "activated", "training", "trained"]
    (sent,) = board.office.sent(1)
    np.testing.assert_allclose(sent + board.residual(), delta_of(1), atol=1e-5)
    assert board.office.states[-1].models[0].version == 1


def test_orders_heard_before_the_version_are_not_lost(board):
    """Retained order first, manifest afterwards: the round is trained all the same."""
    board.office.order(3)
    board.start().turns(5)
    board.office.manifest()
    board.run(lambda: board.office.updates[3])


def test_a_new_version_stops_the_training_of_the_old(board):
    """If the owner allows it: the training is ended, its update never sent, and the new version's round is trained."""
    board.config = msgspec.structs.replace(board.config, install_while_training=True)
    board.office.manifest()
    board.start().run(board.active)
    trainer(board).patience = 10**6
    board.office.order(1)
    board.run(lambda: trainer(board).busy)
    trainer(board).patience = 0
    board.office.manifest(2)
    board.run(lambda: board.active() == 2)
    board.office.order(1, version=2)
    board.run(lambda: board.office.updates[1])
    assert trainer(board).cancelled == 1
    assert {head.version for head, _ in board.office.updates[1]} == {2}


def test_a_failed_training_is_tried_again_and_the_agent_lives(board):
    """Missing data: the reason is told by name, the round is tried three times, and the next one is trained when data is back."""
    data = board.root / "data.npz"
    kept = data.read_bytes()
    data.unlink()
    board.office.manifest()
    board.office.order(1)
    board.start().run(lambda: len(board.office.errors()) == rounds.GIVE_UP_AFTER)
    assert "data.npz" in board.office.errors()[0]
    data.write_bytes(b"PK\x03\x04 not an archive")
    board.office.order(2)
    board.run(lambda: len(board.office.errors()) > rounds.GIVE_UP_AFTER)
    assert "numpy archive" in board.office.errors()[-1]
    data.write_bytes(kept)
    board.run(lambda: board.office.updates[2])


def test_a_refused_update_is_as_if_it_had_not_been_trained(board):
    """What was left over before the refused round is still there for the next one; nothing is counted that was not sent."""
    board.office.manifest()
    trained(board.start(), 1)
    before = board.residual()
    board.office.receipts = "refuse"
    trained(board, 2)
    np.testing.assert_array_equal(board.residual(), before)
    board.office.receipts = "store"
    trained(board, 3)
    total = board.office.sent(1)[0] + board.office.sent(3)[0] + board.residual()
    np.testing.assert_allclose(total, delta_of(1) + delta_of(3), atol=1e-4)


def test_a_receipt_for_something_else_ends_nothing(board):
    """Other hashes, other models, garbage: the update stays in the outbox and is sent again."""
    board.office.receipts = "silent"
    board.office.manifest()
    board.office.order(1)
    board.start().run(lambda: board.office.updates[1])
    for receipt in (Receipt(MODEL, 1, 1, bytes(32), stored=True), Receipt("other", 1, 1, bytes(32), stored=True)):
        board.office.say(topics.receipt(DEVICE), encode(receipt), retain=False)
    board.office.say(topics.receipt(DEVICE), b"\xc1garbage", retain=False)
    board.turns(5)
    assert (board.folder / "outbox").exists()
    assert "does not decode" in board.office.errors()[-1]


def test_the_final_weights_are_kept_and_nothing_is_trained(board):
    """An order without a task is fetched, kept on disk, and still there after a restart."""
    board.office.manifest()
    board.start().run(board.active)
    order, _ = board.office.order(9, task=None)
    board.run(lambda: "adopted" in board.office.steps())
    board.lose()
    board.start()
    assert board.session.adopted == order.weights.sha256
    assert BlobStore(board.state / "blobs").intact(order.weights.sha256)
    assert not board.office.updates


def test_progress_is_told_when_there_is_any(board):
    """A download that stands still is not reported every few seconds."""
    board.office.serves = False
    board.office.manifest()
    board.start().turns(200, seconds=5.0)
    assert board.office.steps().count("fetching") <= 3


def test_two_models_take_turns_at_the_trainer(board):
    """Rounds of two models at once: one trains after the other, and each update goes into its own model's state."""
    board.office.manifest()
    board.office.manifest(model="zwei")
    board.start().run(lambda: len(board.agent._models) == 2 and all(m.session.active for m in board.agent._models.values()))
    board.office.order(1)
    board.office.order(2, model="zwei")
    board.run(lambda: board.office.updates[1] and board.office.updates[2])
    assert sorted(trainer(board).started) == [1, 2]
    heads = {head.model: head.round for number in (1, 2) for head, _ in board.office.updates[number]}
    assert heads == {MODEL: 1, "zwei": 2}
    board.run(lambda: all((board.state / "models" / name / "settled").exists() for name in heads))
