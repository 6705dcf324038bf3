"""A model's folder on the device: what it keeps over an activation, a receipt and a refusal."""

import contextlib
import hashlib
import os
from pathlib import Path

import pytest

from edgefl.device.state import Failure
from edgefl.errors import StoreError
from edgefl.store.counter import LARGEST, next_number
from edgefl.store.model_state import ModelState, TrialRecord
from edgefl.store.outbox import OutboxEntry, write_outbox


def put(path, number=1, version=1, variant="w1-fp32"):
    """An outbox file."""
    update = b"update %d" % number
    entry = OutboxEntry(version, variant, number, "x", 1, 1.0, 0.5, hashlib.sha256(update).digest(), len(update), 4)
    write_outbox(path, entry, update, b"kept")
    return entry


def install(state, signed, version=1, failed=()):
    """Keep a candidate and make it the active version."""
    state.prepare(signed, TrialRecord(version, 0, 1), failed)
    state.activate()


@pytest.fixture
def state(tmp_path):
    """An active version with an order, a waiting update, a settled one and personal values."""
    state = ModelState(tmp_path / "models" / "toy")
    install(state, b"manifest 1")
    state.adopt(b"order 1")
    put(state.settled, 1)
    put(state.outbox, 2)
    state.personal.write_bytes(b"mine")
    return state


def names(state):
    """What lies in the folder."""
    return sorted(path.name for path in state.root.iterdir())


def test_nothing_is_on_disk_before_the_first_candidate(tmp_path):
    """A model that was only heard of leaves no folder."""
    state = ModelState(tmp_path / "models" / "toy")
    assert (state.current(), state.previous(), state.candidate(), state.trial(), state.failed()) == (None, None, None, None, ())
    assert (state.orders(), state.waiting(1, "w1-fp32"), state.settled_round(1, "w1-fp32")) == ((), None, 0)
    assert not (tmp_path / "models").exists()


def test_another_version_clears_the_old_ones_things_away_and_keeps_what_a_return_needs(state):
    """Update, residual and personal values belong to one version; manifest and order of the one before are kept."""
    install(state, b"manifest 2", version=2)
    assert (state.current(), state.previous(), state.candidate()) == (b"manifest 2", b"manifest 1", None)
    assert state.orders() == (b"order 1",)
    assert names(state) == ["current", "order.previous", "previous", "trial"]


def test_a_rollback_takes_its_own_order_along(state):
    """The version before, activated again, has the order that it had, and the one that it replaces keeps its own."""
    install(state, b"manifest 2", version=2)
    state.adopt(b"order of 2")
    state.prepare(b"manifest 1", TrialRecord(1, 0, 1), ())
    state.activate(back=True)
    assert (state.current(), state.previous()) == (b"manifest 1", b"manifest 2")
    assert state.orders() == (b"order 1", b"order of 2")


def test_a_return_is_one_rename(state):
    """The version before is the active one again, with its order; the failed one is known, and nothing of it is left."""
    install(state, b"manifest 2", version=2)
    state.adopt(b"order of 2")
    state.revert((Failure(2, 7, "trial-crash"),))
    assert (state.current(), state.previous(), state.orders()) == (b"manifest 1", None, (b"order 1",))
    assert state.failed() == (Failure(2, 7, "trial-crash"),)


def test_a_candidate_changes_nothing_of_the_active_version(state):
    """While a version is tried, and when it is refused, everything is as it was; its starts and its failure are on disk."""
    before = names(state)
    state.prepare(b"manifest 2", TrialRecord(2, 7, 3, 5), ())
    assert (state.candidate(), state.trial()) == (b"manifest 2", TrialRecord(2, 7, 3, 5))
    assert names(state) == sorted([*before, "candidate"])
    state.refuse((Failure(2, 7, "trial-golden"),))
    assert names(state) == sorted([*before, "failed"])
    assert (state.current(), state.waiting(1, "w1-fp32").round) == (b"manifest 1", 2)


def test_an_activation_that_fails_changes_nothing(state, monkeypatch):
    """When the old manifest cannot be kept the old version has everything it had."""

    def full(*_):
        raise StoreError("disk full")

    state.prepare(b"manifest 2", TrialRecord(2, 0, 1), ())
    monkeypatch.setattr("edgefl.store.model_state.write_file", full)
    with pytest.raises(StoreError):
        state.activate()
    assert state.current() == b"manifest 1"
    assert state.waiting(1, "w1-fp32").round == 2


@pytest.mark.parametrize("act", ["activate", "revert"])
def test_a_kill_anywhere_leaves_the_old_version_or_the_new_one(tmp_path, monkeypatch, act):
    """Whatever call into the system is the last one, `current` is whole, and doing the step again ends it."""

    class Killed(BaseException):
        pass

    def told(root, left):
        state = ModelState(root / "models" / "toy")
        install(state, b"manifest 1")
        state.adopt(b"order 1")
        if act == "activate":
            state.prepare(b"manifest 2", TrialRecord(2, 0, 1), ())
        else:
            install(state, b"manifest 2", version=2)
        count = 0

        def fused(real):
            def call(*args, **named):
                nonlocal count
                count += 1
                if count == left:
                    raise Killed
                return real(*args, **named)

            return call

        with monkeypatch.context() as patch:
            for owner, name in ((Path, "replace"), (Path, "unlink"), (os, "fsync"), (os, "open")):
                patch.setattr(owner, name, fused(getattr(owner, name)))
            with contextlib.suppress(Killed):
                state.activate() if act == "activate" else state.revert((Failure(2, 0, "trial-crash"),))
        return state, count

    _, calls = told(tmp_path / "whole", 0)
    seen = set()
    assert calls > 6
    for left in range(1, calls + 1):
        state, _ = told(tmp_path / str(left), left)
        seen.add(state.current())
        if act == "activate" and state.candidate() is not None:
            assert state.current() == b"manifest 1"
            state.activate()
        elif act == "revert" and state.previous() is not None:
            assert state.current() == b"manifest 2"
            state.revert((Failure(2, 0, "trial-crash"),))
        assert state.current() == (b"manifest 2" if act == "activate" else b"manifest 1")
        assert b"order 1" in state.orders()
    assert seen == {b"manifest 1", b"manifest 2"}


@pytest.mark.parametrize("name", ["trial", "failed"])
def test_a_damaged_note_counts_as_none(state, name):
    """A flipped bit in what is known of trials neither stops the agent nor invents a failure."""
    for content in (b"", b"\xff" * 40, b"\x93\x01", b"\x80"):
        (state.root / name).write_bytes(content)
        assert (state.trial(), state.failed())[name == "failed"] in (None, ())


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
