"""A model's folder on the device: what it keeps over an activation, a receipt and a refusal."""

import hashlib

import pytest

from edgefl.errors import StoreError
from edgefl.store.counter import LARGEST, next_number
from edgefl.store.model_state import ModelState
from edgefl.store.outbox import OutboxEntry, write_outbox


def put(path, number=1, version=1, variant="w1-fp32"):
    """An outbox file."""
    update = b"update %d" % number
    entry = OutboxEntry(version, variant, number, "x", 1, 1.0, 0.5, hashlib.sha256(update).digest(), len(update), 4)
    write_outbox(path, entry, update, b"kept")
    return entry


@pytest.fixture
def state(tmp_path):
    """An active version with an order, a waiting update, a settled one and personal values."""
    state = ModelState(tmp_path / "models" / "toy")
    state.activate(b"manifest 1", keep=False)
    state.adopt(b"order 1")
    put(state.settled, 1)
    put(state.outbox, 2)
    state.personal.write_bytes(b"mine")
    return state


def test_nothing_is_on_disk_before_the_first_activation(tmp_path):
    """A model that was only heard of leaves no folder."""
    state = ModelState(tmp_path / "models" / "toy")
    assert (state.current(), state.order(), state.waiting(1, "w1-fp32"), state.settled_round(1, "w1-fp32")) == (
        None,
        None,
        None,
        0,
    )
    assert not (tmp_path / "models").exists()


def test_another_version_clears_the_old_ones_things_away(state):
    """Update, residual, order and personal values belong to one version."""
    state.activate(b"manifest 2", keep=False)
    assert state.current() == b"manifest 2"
    assert sorted(path.name for path in state.root.iterdir()) == ["current"]


def test_the_same_version_again_keeps_them(state):
    """A repaired version goes on where it was."""
    state.activate(b"manifest 1, signed again", keep=True)
    assert sorted(path.name for path in state.root.iterdir()) == ["current", "order", "outbox", "personal", "settled"]
    assert state.current() == b"manifest 1, signed again"


def test_an_activation_that_fails_changes_nothing(state, monkeypatch):
    """When the manifest cannot be written the old version has everything it had."""

    def full(*_):
        raise StoreError("disk full")

    monkeypatch.setattr("edgefl.store.model_state.write_file", full)
    with pytest.raises(StoreError):
        state.activate(b"manifest 2", keep=False)
    assert state.current() == b"manifest 1"
    assert state.waiting(1, "w1-fp32").round == 2


def test_an_update_of_another_version_or_variant_does_not_wait(state):
    """What an interrupted activation left behind is known for what it is."""
    assert state.waiting(1, "w1-fp32").round == 2
    assert state.waiting(2, "w1-fp32") is None
    assert state.waiting(1, "w0.5-fp32") is None
    assert state.settled_round(1, "w1-fp32") == 1
    assert state.settled_round(2, "w1-fp32") == 0


def test_a_receipt_turns_the_outbox_into_the_settled_one(state):
    """One rename: the update no longer waits, its residual is the next round's."""
    state.settle()
    assert state.waiting(1, "w1-fp32") is None
    assert state.settled_round(1, "w1-fp32") == 2
    with pytest.raises(StoreError):
        state.settle()


def test_a_refusal_leaves_the_residual_before(state):
    """The refused update goes, what was settled before it stays; doing it twice does no harm."""
    for _ in range(2):
        state.withdraw()
    assert state.waiting(1, "w1-fp32") is None
    assert state.settled_round(1, "w1-fp32") == 1


def test_forgetting_leaves_an_empty_folder(state):
    """What belongs to another fleet goes completely."""
    state.forget()
    assert list(state.root.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "following"),
    [(None, 1), (b"41\n", 42), (b"", 1), (b"many\n", 1), (b"-9", 1), (b"9" * 30, 1), (b"\xff\xfe", 1), (b"%d" % LARGEST, 1)],
)
def test_a_number_rises_and_stays_one_that_can_be_sent(tmp_path, content, following):
    """One more than last time; a damaged file begins anew instead of spoiling every message."""
    path = tmp_path / "session"
    if content is not None:
        path.write_bytes(content)
    assert next_number(path) == following
    assert next_number(path) == following + 1
