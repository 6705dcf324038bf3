"""The agent on a broker in memory: what a board does about what it hears, and about a disk that fails."""

import contextlib
import errno
import os
import random
import subprocess
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import toyboard as toy
from edgefl.codec.weights import Precision, encode_weights
from edgefl.device import hands, rounds
from edgefl.identity.repository import appointed
from edgefl.identity.signing import Signer
from edgefl.layout import Layout, Tensor
from edgefl.link.contract import Arrived, Refused
from edgefl.link.memory import Faults, MemoryBroker
from edgefl.store import atomic
from edgefl.store.blobs import BlobStore
from edgefl.wire import topics
from edgefl.wire.messages import encode
from edgefl.wire.rounds import PART_SIZE, Receipt

NAME = toy.MODEL, toy.PROFILE


@pytest.fixture
def board(tmp_path, monkeypatch):
    """A board that has never heard of any model, with a scripted engine."""
    monkeypatch.setattr(hands, "TrainerProcess", toy.InlineTrainer)
    monkeypatch.setattr("edgefl.device.trainer.open_engine", toy.ScriptedEngine)
    board = toy.Board(tmp_path)
    yield board
    if board.agent:
        board.agent._hands.close()


def trainer(board):
    """The inline trainer of the present start."""
    return board.agent._hands.trainings._trainer


def trained(board, number):
    """Announce a round and run until its update has arrived and is settled."""
    board.office.order(number)
    return board.run(lambda: board.office.updates[number] and board.session.work is None)


def test_a_round_goes_from_order_to_receipt(board):
    """A version is announced, fetched and activated; the round's update arrives once and its residual is kept."""
    board.office.manifest()
    trained(board.start(), 1)
    assert [s for s in board.office.steps() if s != "fetching"] == ["trial", "activated", "training", "trained"]
    (sent,) = board.office.sent(1)
    np.testing.assert_allclose(sent + board.residual(), toy.delta_of(1), atol=1e-5)
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

    class Large(toy.ScriptedEngine):
        def train(self, *_, **__):
            self._vector = self._vector + data
            return toy.Trained(1, 1.0, 0.5)

    monkeypatch.setattr("edgefl.device.trainer.open_engine", Large)
    link = board.broker.link
    monkeypatch.setattr(board.broker, "link", lambda *a, **k: link(*a, **{**k, "budget": 5 * PART_SIZE}))
    weights = encode_weights(np.zeros(large.size, np.float32), large, Precision.FP32)
    board.config = msgspec.structs.replace(board.config, storage_kib=65536)
    files = tuple(board.office.offer(role, content) for role, content in (("train", b"train"), ("weights", weights)))
    board.office.manifest(layout=large, files=files)
    board.office.order(1, task=msgspec.structs.replace(toy.TASK, sparsity=1.0, bits=8), vector=np.zeros(large.size), layout=large)
    board.start().run(lambda: board.office.updates[1] and board.session.work is None)
    ((head, sent),) = board.office.updates[1]
    assert head.parts > 6
    assert len(sent) > 5 * PART_SIZE


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
    np.testing.assert_allclose(total, toy.delta_of(1) + toy.delta_of(3), atol=1e-4)


def test_a_receipt_for_something_else_ends_nothing(board):
    """Other hashes, other models, garbage: the update stays in the outbox and is sent again."""
    board.office.receipts = "silent"
    board.office.manifest()
    board.office.order(1)
    board.start().run(lambda: board.office.updates[1])
    for receipt in (Receipt(toy.MODEL, 1, 1, bytes(32), stored=True), Receipt("other", 1, 1, bytes(32), stored=True)):
        board.office.say(topics.receipt(toy.DEVICE), encode(receipt), retain=False)
    board.office.say(topics.receipt(toy.DEVICE), b"\xc1garbage", retain=False)
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


@pytest.mark.parametrize(
    ("words", "announce"),
    [
        ("not trusted here", lambda o: o.assign(2, signer=Signer.generate())),
        ("another purpose", lambda o: o.say(topics.assignment(toy.DEVICE), encode(o.online.sign("round", b"x")))),
        ("older assignment", lambda o: o.assign(2, counter=0)),
        ("another device", lambda o: o.assign(2, device="cam-02")),
        ("assignment has expired", lambda o: o.assign(2, expires=int(toy.START) - 1)),
        ("has expired", lambda o: o.manifest(2, expires=int(toy.START) - 1)),
        ("not the one", lambda o: (o.manifest(2, announce=False), o.manifest(2), o.say(topics.manifest(*NAME, 2), b"\x00"))),
        ("does not fit this device", lambda o: o.manifest(2, graphs={"train": bytes(2 << 20)})),
        ("another engine", lambda o: o.manifest(2, engine="ort-training")),
        ("metadata cannot be believed", lambda o: o.say(topics.metadata("timestamp"), b"{")),
        ("unknown role", lambda o: o.say(topics.metadata("evil"), b"{}")),
        ("does not decode", lambda o: o.say(topics.assignment(toy.DEVICE), b"\x00")),
        ("not trusted here", lambda o: o.order(2, signer=Signer.generate())),
        ("has expired", lambda o: o.order(2, expires=int(toy.START) - 1)),
        ("another variant", lambda o: o.order(2, announce=False) and o.say(*wrong_variant(o))),
        ("too large", lambda o: o.order(2, weights=o.offer("weights", bytes(10_000)))),
        ("does not decode", lambda o: o.say(topics.round_order(toy.MODEL, toy.VARIANT), b"\x93\x01")),
    ],
)
def test_what_is_not_believed_changes_nothing_and_is_told_once(board, words, announce):
    """Garbage and forgeries, retained and heard again on every connection: one report, and the old version serves on."""
    board.office.manifest()
    board.start().run(board.active)
    announce(board.office)
    board.run(board.office.errors, turns=2000)
    for _ in range(5):
        board.link.drop()
        board.turns(4, seconds=0.5)
    assert all(words in error for error in board.office.errors())
    assert len(board.office.errors()) == 1
    assert (board.active(), board.session.installing, board.session.work) == (1, None, None)


def wrong_variant(office):
    """An order for another variant, on our variant's topic."""
    _, payload = office.order(2, variant="w0.5-int8", announce=False)
    return topics.round_order(toy.MODEL, toy.VARIANT), payload


def test_orders_of_another_version_are_no_news(board):
    """The retained order of the version before stays silent after a push, on every connection; a new order is followed."""
    board.office.manifest()
    trained(board.start(), 7)
    board.office.manifest(2)
    board.run(lambda: board.active() == 2)
    board.link.drop()
    board.turns(5)
    assert board.office.errors() == []
    board.office.order(1, version=2)
    board.run(lambda: board.office.updates[1])


def test_a_changed_variant_changes_what_is_listened_to(board):
    """After a push that changes the structure, orders of the old structure no longer arrive."""
    board.office.manifest()
    board.start().run(board.active)
    board.office.manifest(2, variant="w0.5-int8")
    board.run(lambda: board.active() == 2)
    board.office.order(4)
    board.turns(5)
    assert board.office.errors() == []
    assert board.session.work is None


def test_a_replaced_online_key_is_no_scandal(board):
    """While a version with another key is on its way its orders are not believed yet, not reported, and followed afterwards."""
    board.office.manifest()
    board.start().run(board.active)
    board.office.serves = False
    office, new = board.office, Signer.generate()
    office.publish(appointed(office.documents, "online", [new], 1, [office.root], toy.START))
    office.online = new
    board.office.manifest(2)
    board.office.order(1, version=2)
    board.turns(20)
    board.office.serves = True
    board.run(lambda: board.office.updates[1], turns=2000)
    assert board.office.errors() == []


def test_a_replayed_lower_version_is_ignored(board):
    """A manifest that was good once does not bring the old version back."""
    _, old = board.office.manifest(1)
    (old_assignment,) = (
        board.broker.retained[topic] for topic in board.broker.retained if topic == topics.assignment(toy.DEVICE)
    )
    board.office.manifest(2)
    board.start().run(board.active)
    board.office.say(topics.assignment(toy.DEVICE), old_assignment)
    board.office.say(topics.manifest(*NAME, 1), old)
    board.turns(10)
    assert (board.active(), board.session.installing) == (2, None)


def test_a_replay_finds_no_gap_while_a_damaged_version_is_repaired(board):
    """With the active version damaged and the files of the old one still there, the old manifest is not installed instead."""
    _, old = board.office.manifest(1, announce=False)
    manifest, _ = board.office.manifest(2, announce=False)
    blobs = BlobStore(board.state / "blobs")
    board.office.manifest(2)
    board.start().run(board.active)
    board.lose()
    for _, data in board.office.files.values():
        blobs.put(data)
    blobs.path(manifest.file("train").sha256).write_bytes(b"damaged")
    board.office.serves = False
    board.office.say(topics.manifest(*NAME, 1), old)
    board.start().turns(50)
    assert board.active() == 0
    board.office.serves = True
    board.run(lambda: board.active() == 2, turns=3000, seconds=0.5)


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
    np.testing.assert_allclose(sent + board.residual(), toy.delta_of(1), atol=1e-5)


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
    np.testing.assert_allclose(total, toy.delta_of(1) + toy.delta_of(2), atol=1e-4)


def test_a_version_is_repaired_after_its_announcement_has_gone(board):
    """The manifest on disk, even an expired one, is enough to fetch what is damaged."""
    manifest, _ = board.office.manifest(expires=int(toy.START) + 100)
    board.start().run(board.active)
    board.lose()
    board.office.say(topics.manifest(*NAME, 1), b"")
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
    np.testing.assert_allclose(office.sent(2)[0] + board.residual(), toy.delta_of(2), atol=1e-5)


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


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def full_disk(monkeypatch):
    """A disk that is full for files whose path holds one of these texts."""
    texts = []
    real_open, real_fallocate, real_pwrite = os.open, os.posix_fallocate, os.pwrite

    def path_of(descriptor):
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())

    def opened(path, flags, *rest, **named):
        if flags & os.O_CREAT and any(text in str(path) for text in texts):
            raise FULL
        return real_open(path, flags, *rest, **named)

    def allocated(descriptor, *rest):
        if any(text in path_of(descriptor) for text in texts):
            raise FULL
        return real_fallocate(descriptor, *rest)

    def written(descriptor, *rest):
        if any(text in path_of(descriptor) for text in texts):
            raise FULL
        return real_pwrite(descriptor, *rest)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "posix_fallocate", allocated)
    monkeypatch.setattr(os, "pwrite", written)
    return texts


@pytest.mark.parametrize("place", ["candidate", "previous", ".part", "order", "outbox"])
def test_a_full_disk_delays_and_loses_nothing(board, full_disk, place):
    """Whichever write fails: it is told, the old version serves, and everything is caught up when there is room again."""
    board.office.manifest()
    trained(board.start(), 1)
    full_disk.append(place)
    board.office.manifest(2)
    board.turns(100, seconds=1.0)
    if place in {"candidate", "previous", ".part"}:
        assert board.active() == 1
        trained_while_full = place != ".part"
    else:
        board.run(lambda: board.active() == 2)
        trained_while_full = False
    board.office.order(5, version=board.active())
    board.turns(60, seconds=1.0)
    assert bool(board.office.updates[5]) == trained_while_full
    assert "disk full" in board.office.errors()[-1]
    assert len(board.office.errors()) < 20
    full_disk.clear()
    board.run(lambda: board.active() == 2, turns=3000, seconds=1.0)
    board.office.order(6, version=2)
    board.run(lambda: board.office.updates[6] and board.session.work is None, turns=3000, seconds=1.0)
    assert len(board.office.sent(6)) == 1


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of half a megabyte, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full_delays_and_loses_nothing(board, tiny_disk, monkeypatch):
    """A real file system without a byte left, again and again: each round's update still arrives once, and the law holds."""
    monkeypatch.setattr(hands, "RESERVE", 0)
    board.state.symlink_to(tiny_disk)
    ballast = tiny_disk / "ballast"
    board.office.manifest()
    board.start().run(board.active)
    for number in (1, 2, 3):
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(bytes(4096))
        board.office.order(number)
        board.turns(60, seconds=1.0)
        assert board.active() == 1
        assert not board.office.updates[number]
        ballast.unlink()
        board.run(lambda n=number: board.office.updates[n] and board.session.work is None, turns=3000, seconds=1.0)
    sent = sum(board.office.sent(number)[0] for number in (1, 2, 3))
    assert all(len(board.office.sent(number)) == 1 for number in (1, 2, 3))
    np.testing.assert_allclose(sent + board.residual(), sum(toy.delta_of(n) for n in (1, 2, 3)), atol=1e-3)
    assert "disk" in board.office.errors()[0]
    board.agent._hands.close()
    board.agent = None


def test_a_receipt_on_a_full_disk_is_asked_for_again(board, monkeypatch):
    """When the rename to `settled` fails the update stays in the outbox, is sent again, and settled when the disk works."""
    real, broken = atomic.replace, [True]

    def replace(src, dst):
        if broken[0] and dst.name == "settled":
            raise atomic.store_error("replace", dst, OSError(errno.EROFS, "Read-only file system"))
        real(src, dst)

    monkeypatch.setattr("edgefl.store.model_state.replace", replace)
    board.office.manifest()
    board.office.order(1)
    board.start().run(lambda: board.office.updates[1])
    board.turns(100, seconds=1.0)
    assert (board.folder / "outbox").exists()
    assert 2 <= len(board.office.updates[1]) <= 10
    broken[0] = False
    board.run((board.folder / "settled").exists, seconds=1.0)
    assert len(board.office.sent(1)) == 1


def test_what_no_version_needs_makes_room_when_the_disk_is_full(board, monkeypatch):
    """Partial files of a version that was overtaken are removed when a download finds no room."""
    board.office.serves = False
    board.office.manifest(1, graphs={"train": bytes(600_000)})
    board.start().run(lambda: list((board.state / "partial").glob("*.part")))
    overtaken = {path.name for path in (board.state / "partial").glob("*.part")}
    free = os.fstatvfs

    def fstatvfs(descriptor):
        found = free(descriptor)
        left = {path.name for path in (board.state / "partial").glob("*.part")} & overtaken
        return os.statvfs_result((*found[:4], 0, *found[5:])) if left else found

    monkeypatch.setattr(os, "fstatvfs", fstatvfs)
    board.office.manifest(2, graphs={"train": b"smaller"})
    board.office.serves = True
    board.run(lambda: board.active() == 2, turns=3000, seconds=0.5)


def test_a_version_that_does_not_fit_does_not_keep_rounds_from_running(board, monkeypatch):
    """While a new version waits for room, the old one goes on learning."""
    board.office.manifest()
    board.start().run(board.active)
    real = os.posix_fallocate

    def allocate(descriptor, offset, length):
        if length > 500_000:
            raise FULL
        real(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    board.office.manifest(2, graphs={"train": bytes(600_000)})
    board.run(board.office.errors)
    for number in (1, 2):
        trained(board, number)
    assert board.active() == 1


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
    assert heads == {toy.MODEL: 1, "zwei": 2}
    board.run(lambda: all((board.state / "models" / name / "settled").exists() for name in heads))


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
    np.testing.assert_allclose(sum(u[0] for u in sent) + board.residual(), sum(map(toy.delta_of, (1, 2, 3))), atol=1e-3)


def repeat(board, say):
    """Say something again now and then, as a server that connects anew; retained messages may be lost too here."""
    if random.Random(board.clock.now).random() < 0.02:
        say()
    return False


def settled(board, number):
    """Whether a round's update has arrived and is done with."""
    return board.office.updates[number] and board.session.work is None


KINDS = ("manifest/toy/toy-profile", "round/toy/w1-fp32", "block/0123456789abcdef", "manifest/x", "nonsense/a/b")
_NOISE = toy.Office(MemoryBroker(), toy.Clock())
_SIGNED = (
    _NOISE.manifest(announce=False)[1],
    _NOISE.order(1, announce=False)[1],
    encode(Receipt("toy", 1, 1, bytes(32), stored=True)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(KINDS), st.one_of(st.binary(max_size=200), st.sampled_from(_SIGNED)), st.integers(0, 10**6))
def test_no_message_ends_the_agent(board, kind, payload, place):
    """Noise, foreign signatures and cut messages on every topic: the agent lives, and believes none of them."""
    if board.agent is None:
        board.start()
    topic = topics.receipt(toy.DEVICE) if place % 7 == 0 else f"efl/v1/all/{kind}"
    for data in (payload, payload[: place % (len(payload) + 1)]):
        board.agent._on_link(Arrived(topic, data, retained=True))
    board.turn()
    assert not board.agent._models


def test_a_refused_subscription_is_told(board):
    """A broker that keeps the device from its orders is reported, for somebody to look at its rules."""
    board.start().turns(2)
    board.agent._on_link(Refused("efl/v1/all/manifest/+/toy-profile"))
    board.turns(2)
    assert "does not let this device subscribe" in board.office.errors()[0]


def test_a_disk_that_cannot_delete_does_not_keep_rounds_from_running(board, monkeypatch):
    """Tidying up is no reason to stop."""

    def broken(*_):
        raise atomic.store_error("delete", Path("x"), OSError(errno.EIO, "Input/output error"))

    monkeypatch.setattr(BlobStore, "keep_only", broken)
    board.office.manifest()
    board.start()
    for number in (1, 2):
        trained(board, number)


def test_death_and_birth_are_told(board):
    """The broker tells the death of a board that vanishes, and the board its next birth with a higher number."""
    board.office.manifest()
    board.start().run(board.active)
    board.lose()
    board.office.turn()
    assert (board.office.states[-1].online, board.office.states[-1].session) == (False, 1)
    board.start().turns(3)
    assert (board.office.states[-1].online, board.office.states[-1].session) == (True, 2)
