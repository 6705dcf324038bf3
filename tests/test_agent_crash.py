"""Sudden death of the agent at every boundary: between any two of its effects, writes, renames and messages."""

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest

import toyboard as toy
from edgefl.codec.golden import encode_golden, golden_inputs
from edgefl.device import hands
from edgefl.device.job import Failed
from edgefl.engine.contract import Trained
from edgefl.store.blobs import BlobStore
from toyoffice import MODEL
from toytrainer import LAYOUT, InlineTrainer, ScriptedEngine, delta_of

ROUNDS = 3


class Killed(BaseException):
    """The process is dead: nothing catches this, nothing is tidied up."""


class Fuse:
    """Burns down by one at every boundary and then kills, once."""

    def __init__(self):
        self.left = -1
        self.passed = 0

    def burn(self):
        """A boundary."""
        self.passed += 1
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.fixture
def fuse(monkeypatch):
    """A fuse at the beginning of every effect, and around everything that changes the disk or the queue."""
    fuse = Fuse()
    monkeypatch.setattr(hands, "TrainerProcess", InlineTrainer)
    monkeypatch.setattr("edgefl.device.trainer.open_engine", ScriptedEngine)

    def around(owner, name, *, after=True):
        real = getattr(owner, name)

        def fused(*args, **kwargs):
            fuse.burn()
            result = real(*args, **kwargs)
            if after:
                fuse.burn()
            return result

        monkeypatch.setattr(owner, name, fused)

    around(hands.Hands, "_perform", after=False)
    around(InlineTrainer, "run")
    around(Path, "replace")
    around(Path, "unlink")
    around(os, "pwrite", after=False)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # processes die here, not the power
    return fuse


def story(root):
    """A version, rounds, a new version, a round of it: told until the end, however often the agent dies; the board."""
    board = toy.Board(root)
    board.office.manifest()
    survive(board, board.active)
    for number in range(1, ROUNDS + 1):
        board.office.order(number)
        survive(board, lambda number=number: board.office.updates[number] and settled(board))
    board.office.manifest(2)
    survive(board, lambda: board.active() == 2)
    board.office.order(1, version=2)
    survive(board, lambda: board.office.updates[1][-1][0].version == 2 and settled(board))
    return board


def settled(board):
    """Whether nothing waits any more."""
    model = board.agent._models.get(MODEL)
    return model and model.session.work is None and not (board.folder / "outbox").exists()


def survive(board, until):
    """Run until something has happened; after a sudden death the agent starts again."""
    while True:
        try:
            if board.agent is None:
                board.start()
            board.run(until)
        except Killed:
            if board.agent is not None:
                with contextlib.suppress(Exception):
                    board.agent._hands.fetcher.close()  # the system closes what a dead process had open
                board.agent = None
            board.link.drop()
        else:
            return


def check(board, counted):
    """One distinct update per round; sent and kept are all that was learnt in the rounds that count."""
    first = {number: {head.sha256 for head, _ in board.office.updates[number] if head.version == 1} for number in counted}
    assert all(len(hashes) == 1 for hashes in first.values()), first
    second = [(head, data) for head, data in board.office.updates[1] if head.version == 2]
    assert len({head.sha256 for head, _ in second}) == 1
    sent = board.office.read(*second[0]).dense()
    np.testing.assert_allclose(sent + board.residual(), delta_of(1), atol=1e-4)
    blobs = BlobStore(board.state / "blobs")
    assert all(blobs.intact(ref.sha256) for ref in board.session.active.files)
    assert not list((board.state / "partial").glob("*"))


def test_death_at_any_boundary_loses_and_doubles_nothing(tmp_path, fuse):
    """Killed at each boundary in turn and started again from the same directory, the board tells the same story."""
    check(story(tmp_path / "undisturbed"), range(1, ROUNDS + 1))
    count = fuse.passed
    assert count > 100
    for place in range(1, count + 1):
        fuse.left = place
        board = story(tmp_path / str(place))
        assert fuse.left <= 0
        check(board, range(1, ROUNDS + 1))


def test_what_was_sent_and_kept_is_what_was_learnt_though_every_training_differs(tmp_path, fuse, monkeypatch):
    """The board's data grows, so a round that is trained again gives another update: still one arrives, with its own residual."""
    learnt = {}

    class Growing(ScriptedEngine):
        def train(self, *_, **__):
            number = round(float(self._vector[0]))
            if not number:
                return super().train()  # in a trial
            learnt[number] = np.random.default_rng([number, fuse.passed]).normal(size=LAYOUT.size).astype(np.float32)
            self._vector = self._vector + learnt[number]
            return Trained(1, 1.0, 0.5)

    monkeypatch.setattr("edgefl.device.trainer.open_engine", Growing)
    for place in range(20, 140, 3):
        board = toy.Board(tmp_path / str(place))
        board.office.manifest()
        fuse.left = place
        learnt.clear()
        for number in range(1, ROUNDS + 1):
            board.office.order(number)
            survive(board, lambda b=board, n=number: b.office.updates[n] and settled(b))
            assert all(len(board.office.sent(n)) == 1 for n in range(1, number + 1))
            sent = sum(board.office.sent(n)[0] for n in range(1, number + 1))
            np.testing.assert_allclose(sent + board.residual(), sum(learnt.values()), atol=1e-3)


def test_a_refusal_interrupted_by_death_leaves_the_residual_before(tmp_path, fuse):
    """Refused in the second round, killed at some boundary: the first round's residual goes into the third round, once."""
    for place in range(60, 110, 2):
        board = toy.Board(tmp_path / str(place))
        board.office.manifest()
        fuse.left = place
        for number, receipts in ((1, "store"), (2, "refuse"), (3, "store")):
            board.office.receipts = receipts
            board.office.order(number)
            survive(board, lambda b=board, n=number: b.office.updates[n] and settled(b))
        sent = board.office.sent(1)[0] + board.office.sent(3)[0]
        np.testing.assert_allclose(sent + board.residual(), delta_of(1) + delta_of(3), atol=1e-3)


def versions(root, monkeypatch):
    """A version; one that fails its trial; one that is taken and then dies in its rounds; a round of the first; the board."""
    board = toy.Board(root)
    run = InlineTrainer.run
    died = Failed(round=1, reason="it died", fault="machine", peak_rss=0, code="crash")
    monkeypatch.setattr(InlineTrainer, "run", lambda self, job: died if getattr(job, "version", 0) == 3 else run(self, job))
    files = {number: {role: b"%s of %d" % (role.encode(), number) for role in ("train", "eval", "infer")} for number in (1, 2, 3)}
    wrong = encode_golden(golden_inputs((5,), 3), np.ones((4, 3), np.float32))
    board.office.manifest(1, graphs=files[1])
    survive(board, board.active)
    board.office.manifest(2, graphs={**files[2], "golden": wrong})
    survive(board, lambda: [one.code for one in board.model.disk.failed()] == ["trial-golden"] and not board.session.install)
    board.office.manifest(3, graphs=files[3])
    survive(board, lambda: board.active() == 3)
    board.office.order(1, version=3)
    survive(board, lambda: board.active() == 1)
    board.office.order(2)
    survive(board, lambda: board.office.updates[2] and settled(board))
    return board


@pytest.mark.slow
def test_death_at_any_boundary_of_a_trial_or_a_return_leaves_old_or_new(tmp_path, fuse, monkeypatch):
    """Killed at each boundary in turn: what failed stays failed, what served serves, and nothing else is left on disk."""
    end = versions(tmp_path / "undisturbed", monkeypatch)
    count = fuse.passed
    assert count > 100
    for place in range(1, count + 1):
        fuse.left = place
        with monkeypatch.context() as patch:
            board = versions(tmp_path / str(place), patch)
        assert fuse.left <= 0
        assert [(one.version, one.code) for one in board.model.disk.failed()] == [(2, "trial-golden"), (3, "trial-crash")]
        assert board.session.active.version == 1
        assert {path.name for path in (board.state / "blobs").iterdir()} == {
            path.name for path in (end.state / "blobs").iterdir()
        }, place
        board.agent._hands.close()
