"""What a board does with a version that fails its trial, with the real trainer process."""

import time

import msgspec
import pytest

import toyboard as toy
from edgefl.store.model_state import TrialRecord
from edgefl.wire.releases import Health
from trialversions import START, VARIANT, contents, data_for


@pytest.fixture
def board(tmp_path):
    """A board with the real trainer process."""
    board = toy.Board(tmp_path)
    data_for(tmp_path / "data.npz", START)
    yield board
    if board.agent:
        board.agent._hands.close()


def announce(board, version, files, **changes):
    """Announce a version of the variant with these files."""
    refs = tuple(board.office.offer(role, data) for role, data in files.items())
    changes = {"health": Health(drop=0.1), **changes}
    return board.office.manifest(
        version, files=refs, layout=VARIANT.layout, input_shape=VARIANT.input_shape, classes=VARIANT.classes,
        batch=VARIANT.batch, recipe=VARIANT.recipe, **changes,
    )[0]  # fmt: skip


def run(board, until, seconds=30.0):
    """Let everybody work in real time until something has happened."""
    deadline = time.monotonic() + seconds
    while not until():
        board.turn(0.01)
        time.sleep(0.005)
        assert time.monotonic() < deadline, (board.office.steps(), board.office.errors()[-3:])


def codes(board):
    """The codes with which the board has reported that it went back."""
    return [report.code for report in board.office.reports if report.step in ("reverted", "failed")]


def dying(trainer):
    """Let the trainer's child die of every job as soon as it has it."""
    start = trainer.start

    def begin(job):
        start(job)
        trainer._child.kill()

    trainer.start = begin


BAD = {
    "crash at load": "trial-crash",
    "a graph that does not load": "trial-load",
    "NaN weights": "trial-load",
    "wrong golden": "trial-golden",
    "worse than before": "trial-metric",
    "too slow": "trial-deadline",
    "too much memory": "trial-memory",
}


def test_a_bad_version_that_is_only_served_leaves_the_old_one_answering(board):
    """On a board that only answers: the second version fails its trial, the first stays, and a third takes its place."""
    board.config = msgspec.structs.replace(board.config, engine="inference", data="")
    served = {version: contents(change=change) for version, change in ((1, ""), (2, "golden"), (3, ""))}
    for files in served.values():
        del files["train"]
    announce(board, 1, served[1], engine="inference")
    board.start()
    run(board, board.active)
    announce(board, 2, served[2], engine="inference")
    run(board, lambda: codes(board))
    assert (codes(board), board.active()) == (["trial-golden"], 1)
    board.office.order(1, vector=START, layout=VARIANT.layout)
    announce(board, 3, served[3], engine="inference")
    run(board, lambda: board.active() == 3)
    assert not board.office.updates
    assert board.session.previous.version == 1


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_version_is_left_and_reported_and_the_old_one_serves(board, fault):
    """Whatever is wrong with the second version: the first one stays, trains on, and the second is not tried again."""
    announce(board, 1, contents())
    board.start()
    run(board, board.active)
    trainer = board.agent._hands.trainings._trainer
    change = {"a graph that does not load": "infer", "NaN weights": "nan", "wrong golden": "golden"}.get(fault, "")
    health = Health(drop=0.1, seconds=1e-4) if fault == "too slow" else Health(drop=0.1)
    vector = -START if fault == "worse than before" else START
    if fault == "too much memory":
        trainer._memory = 1 << 20
    if fault == "crash at load":
        dying(trainer)
    announce(board, 2, contents(vector, change), health=health)
    run(board, lambda: codes(board))
    trainer.__dict__.pop("start", None)
    assert codes(board) == [BAD[fault]]
    assert board.office.steps().count("trial") == 2
    assert (board.active(), board.session.install) == (1, None)
    trainer._memory = 512 << 20
    kept = {path.name for path in (board.state / "blobs").iterdir()}
    assert kept == {ref.sha256.hex() for ref in board.session.active.files}, "nothing of the bad version is left"
    board.lose()
    board.start()
    run(board, lambda: len(codes(board)) == 2)
    board.office.order(1, vector=START, layout=VARIANT.layout)
    run(board, lambda: board.office.updates[1])
    assert codes(board) == [BAD[fault]] * 2, "told once more after the restart"
    assert board.office.steps().count("trial") == 2, "but not tried again"


def test_another_rollout_gives_a_failed_version_another_chance(board):
    """Failed by chance (killed), the same version passes under another rollout number."""
    announce(board, 1, contents())
    board.start()
    run(board, board.active)
    trainer = board.agent._hands.trainings._trainer
    dying(trainer)
    manifest = announce(board, 2, contents(-START), health=Health())
    run(board, lambda: codes(board))
    del trainer.start
    board.office.assign(manifest.version, rollout=9)
    run(board, lambda: board.active() == 2)
    assert board.model.disk.failed() == ()
    assert board.model.disk.trial() == TrialRecord(2, 9, 1)


def test_a_first_version_that_fails_leaves_nothing(board):
    """There is nothing to go back to: the device says so and holds nothing."""
    announce(board, 1, contents(change="golden"))
    board.start()
    run(board, lambda: codes(board))
    assert (codes(board), board.office.reports[-1].step) == (["trial-golden"], "failed")
    assert board.active() == 0
    assert not list((board.state / "blobs").iterdir())
