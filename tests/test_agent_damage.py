"""A board whose files were damaged, or are another's: it repairs what it can, and never fails to start."""

import os

import numpy as np
import pytest

from edgefl.store.blobs import BlobStore
from edgefl.wire import topics
from toyagent import scripted, trained
from toyclock import START
from toyoffice import MODEL, PROFILE
from toytrainer import delta_of


@pytest.fixture
def board(tmp_path, monkeypatch):
    """A board that has never heard of any model, with a scripted engine."""
    with scripted(tmp_path, monkeypatch) as board:
        yield board


@pytest.mark.parametrize("what", ["train", "weights", "round"])
def test_a_flipped_bit_in_a_file_is_found_before_training(board, what):
    """A file that was damaged on the card is fetched again, and the round is trained with the right one."""
    manifest, _ = board.office.manifest()
    board.start().run(board.active)
    board.office.serves = what != "round"
    if what == "round":
        order, _ = board.office.order(1)
        board.office.serves = True
        board.run(lambda: board.session.adopted or board.session.work)
        refs = [order.weights]
    else:
        refs = [manifest.file(what)]
    blobs = BlobStore(board.state / "blobs")
    paths = [blobs.path(ref.sha256) for ref in refs if blobs.has(ref.sha256)]
    for path in paths:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
    trained(board, 1)
    assert all(blobs.intact(ref.sha256) for ref in refs)
    (sent,) = board.office.sent(1)
    np.testing.assert_allclose(sent + board.residual(), delta_of(1), atol=1e-5)


def test_a_damaged_version_is_repaired_without_losing_its_update(board):
    """A bit flips while an update waits: after the restart the update is sent, the file fetched, the residual counts."""
    board.office.receipts = "silent"
    manifest, _ = board.office.manifest()
    board.office.order(1)
    board.start().run(lambda: board.office.updates[1])
    board.lose()
    path = BlobStore(board.state / "blobs").path(manifest.file("train").sha256)
    path.write_bytes(b"X" + path.read_bytes()[1:])
    board.office.receipts = "store"
    board.start()
    assert board.active() == 0
    board.run(lambda: board.active() == 1 and board.session.work is None)
    assert len(board.office.sent(1)) == 1
    trained(board, 2)
    total = board.office.sent(1)[0] + board.office.sent(2)[0] + board.residual()
    np.testing.assert_allclose(total, delta_of(1) + delta_of(2), atol=1e-4)


def test_a_version_is_repaired_after_its_announcement_has_gone(board):
    """The manifest on disk, even an expired one, is enough to fetch what is damaged."""
    manifest, _ = board.office.manifest(expires=int(START) + 100)
    board.start().run(board.active)
    board.lose()
    board.office.say(topics.manifest(MODEL, PROFILE, 1), b"")
    BlobStore(board.state / "blobs").path(manifest.file("eval").sha256).unlink()
    board.clock.now += 1000
    board.start().run(lambda: board.active() == 1)


@pytest.mark.parametrize("name", ["current", "order", "outbox", "settled"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "garbage", "empty"])
def test_damaged_state_never_stops_a_start(board, name, damage):
    """Whatever happened to a file of the state, the agent starts, gets what it lacks, and trains the next round."""
    board.office.manifest()
    trained(board.start(), 1)
    board.office.receipts = "silent"
    board.office.order(2)
    board.run(lambda: board.office.updates[2])
    board.lose()
    path = board.folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes({"flipped": bytes(data), "cut": bytes(data[:-7]), "garbage": os.urandom(300), "empty": b""}[damage])
    board.office.receipts = "store"
    board.start()
    trained(board, 3)
    assert board.active() == 1
    assert len(board.office.sent(3)) == 1


def test_the_state_of_another_fleet_is_not_taken_over(board):
    """A board that is provisioned anew starts afresh: no version, residual or update of its former fleet counts."""
    board.office.manifest(7)
    board.office.receipts = "silent"
    board.office.order(1, version=7)
    board.start().run(lambda: board.office.updates[1])
    board.lose()
    for topic in list(board.broker.retained):
        board.office.say(topic, b"")
    office = board.office
    board.belong()
    office.receipts = "store"
    office.updates.clear()
    office.manifest(1)
    board.start().run(lambda: board.active() == 1)
    office.order(2, version=1)
    board.run(lambda: office.updates[2] and board.session.work is None)
    assert not office.updates[1]
    np.testing.assert_allclose(office.sent(2)[0] + board.residual(), delta_of(2), atol=1e-5)


def test_foreign_things_in_the_state_directory_are_left_alone(board):
    """Folders and files that are no models, no blobs and no partial files neither stop the agent nor disappear."""
    for name in ("models/lost+found", "models/UPPER", "partial"):
        (board.state / name).mkdir(parents=True)
    for name in ("models/file", "partial/notes.txt", "partial/nonsense.part"):
        (board.state / name).write_text("x")
    board.office.manifest()
    trained(board.start(), 1)
    assert (board.state / "models" / "lost+found").is_dir()
    assert (board.state / "partial" / "notes.txt").exists()
