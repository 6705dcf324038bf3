"""Versions on a device: kept, gone back to, collected, and told of; with a scripted engine in place of the trainer."""

import random

import msgspec
import pytest

from edgefl.device.config import Bundle
from edgefl.device.examine import examine_models
from edgefl.device.job import Failed, Job
from edgefl.device.state import Failure
from edgefl.wire.blocks import file_ref
from edgefl.wire.releases import Health
from toyagent import scripted
from toytrainer import InlineTrainer


class Crashing(InlineTrainer):
    """A trainer that dies in every round of some versions."""

    dies = frozenset()

    def run(self, job):
        """What the job comes to."""
        if isinstance(job, Job) and job.version in self.dies:
            return Failed(round=job.round, reason="it died", fault="machine", peak_rss=0, code="crash")
        return super().run(job)


@pytest.fixture
def board(tmp_path, monkeypatch):
    """A board whose first version is active."""
    with scripted(tmp_path, monkeypatch, Crashing) as board:
        board.first = version(board, 1)
        board.start().run(board.active)
        yield board


def version(board, number, **changes):
    """Announce a version with files of its own."""
    graphs = {role: b"%s of %d" % (role.encode(), number) for role in ("train", "eval", "infer")}
    return board.office.manifest(number, graphs=graphs, **changes)


def assign(board, manifest, rollout=0):
    """Let the device hold this version from now on; its manifest was announced before."""
    board.office.assign(manifest.version, rollout=rollout)


def held(board):
    """Names of the files in the store."""
    return {path.name for path in (board.state / "blobs").iterdir()}


def names(*manifests):
    """Names of these versions' files."""
    return {ref.sha256.hex() for manifest in manifests for ref in manifest.files}


def reverted(board):
    """What the board has said about going back, or staying."""
    board.turns(2)
    return [(report.version, report.code) for report in board.office.reports if report.step == "reverted"]


def second(board):
    """A second version, active after a round of the first one."""
    board.office.order(1)
    board.run(lambda: board.office.updates[1] and board.session.work is None)
    announced = version(board, 2)
    board.run(lambda: board.active() == 2)
    return announced[0]


def test_the_version_before_is_kept_with_its_newest_weights_and_no_other(board):
    """Files of the active version and of the one before stay, weights too; a third version lets go of the first."""
    two = second(board)
    weights = {file_ref("weights", data).sha256.hex() for ref, data in board.office.files.values() if ref.role == "weights"}
    kept = held(board)
    assert names(board.first[0], two) <= kept
    assert len(kept - names(board.first[0], two)) == 1
    assert kept - names(board.first[0], two) <= weights
    three = version(board, 3)[0]
    board.run(lambda: board.active() == 3)
    assert held(board) == names(two, three)


def test_a_rollback_to_the_version_before_needs_no_download(board):
    """The order to hold the lower version again is followed without a request for a block, and back."""
    two = second(board)
    board.office.serves = False
    wants = []
    board.office._on_want = wants.append
    assign(board, board.first[0])
    board.run(lambda: board.active() == 1)
    assert (board.session.previous, wants) == (two, [])
    assign(board, two, rollout=4)
    board.run(lambda: board.active() == 2)
    assert (board.model.disk.trial().rollout, wants) == (4, [])


def test_the_active_version_ends_what_is_on_its_way(board):
    """A version that is being fetched when the active one is assigned again is forgotten, with all that had come."""
    board.office.serves = False
    version(board, 2)
    board.run(lambda: board.session.installing)
    board.turns(3)
    assign(board, board.first[0])
    board.turns(3)
    assert board.session.install is None
    assert (board.active(), held(board)) == (1, names(board.first[0]))
    assert not list((board.state / "partial").iterdir())


def test_a_version_that_crashes_in_its_first_round_gives_way(board):
    """Three times dead in its first round: the version before is back, with its own newest weights, and trains on."""
    two = second(board)
    newest = board.session.previous_weights
    board.agent._hands.trainings._trainer.dies = frozenset({2})
    board.office.order(1, version=2)
    board.run(lambda: board.active() == 1, turns=2000)
    assert reverted(board) == [(2, "trial-crash")]
    assert board.model.disk.failed() == (Failure(2, 0, "trial-crash"),)
    assert board.session.adopted == newest
    assert not (names(two) - names(board.first[0])) & held(board)
    board.office.order(2)
    board.run(lambda: board.office.updates[2])
    assert board.office.steps().count("trial") == 2


def test_a_version_that_has_been_trained_is_not_given_up_for_a_crash(board):
    """What has worked here before is not the version's fault; the round is left to others."""
    second(board)
    board.office.order(1, version=2)
    board.run(lambda: board.office.updates[1][-1][0].version == 2 and board.session.work is None)
    board.agent._hands.trainings._trainer.dies = frozenset({2})
    board.office.order(2, version=2)
    board.run(lambda: board.session.done == (2, 2), turns=2000)
    assert board.active() == 2


def damage(board, manifest):
    """Flip a byte of one of its files."""
    path = board.state / "blobs" / manifest.files[0].sha256.hex()
    path.write_bytes(b"x" + path.read_bytes()[1:])


def test_damage_that_cannot_be_repaired_brings_the_version_before_back(board):
    """Without a network the old version serves after a while; with one, the damaged version is whole and active again."""
    two = second(board)
    board.lose()
    damage(board, two)
    board.office.serves = False
    board.start().turns(5)
    assert board.active() == 0
    board.run(lambda: board.active() == 1, turns=400, seconds=5.0)
    assert reverted(board) == [(2, "disk")]
    assert board.model.disk.failed() == ()
    board.office.serves = True
    board.run(lambda: board.active() == 2, turns=2000, seconds=5.0)


def test_damage_that_can_be_repaired_needs_no_trial(board):
    """The version whose file was damaged goes on as it was."""
    two = second(board)
    board.lose()
    damage(board, two)
    trials = board.office.steps().count("trial")
    board.start().run(lambda: board.active() == 2)
    assert board.office.steps().count("trial") == trials
    assert board.session.previous == board.first[0]


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_a_manifest_that_is_lost_is_replaced_by_the_one_before(board, content):
    """When `current` cannot be believed the version before is active at once, without a network."""
    second(board)
    board.lose()
    (board.folder / "current").write_bytes(content) if content is not None else (board.folder / "current").unlink()
    board.office.serves = False
    board.start()
    assert board.active() == 1


def test_a_board_that_dies_in_every_trial_gives_the_version_up(board):
    """As often as the manifest says, and no oftener; the old version trains on and the failure has its own code."""
    two = version(board, 2, health=Health(starts=2))[0]
    for _ in range(2):
        board.agent._hands.trainings._trainer.patience = 10**6
        board.run(lambda: board.session.trying == 2)
        board.lose()
        board.start()
    board.run(board.model.disk.failed)
    assert board.model.disk.failed() == (Failure(2, 0, "trial-starts"),)
    assert (reverted(board), board.active()) == ([(2, "trial-starts")], 1)
    board.office.order(1)
    board.run(lambda: board.office.updates[1])
    assert not names(two) - names(board.first[0]) & held(board)


def test_a_superseded_version_is_dropped_in_its_trial(board):
    """A newer version that comes in the middle of a trial ends it, and is tried itself."""
    board.agent._hands.trainings._trainer.patience = 10**6
    version(board, 2)
    board.run(lambda: board.session.trying == 2)
    version(board, 3)
    board.agent._hands.trainings._trainer.patience = 0
    board.run(lambda: board.active() == 3)
    assert board.agent._hands.trainings._trainer.cancelled == 1
    assert board.session.previous == board.first[0]


def test_the_doctor_tells_of_versions_that_have_failed(board):
    """Somebody who looks at the board finds out why it does not follow."""
    version(board, 2, health=Health(starts=1))
    board.agent._hands.trainings._trainer.patience = 10**6
    board.run(lambda: board.session.trying == 2)
    board.lose()
    board.start().run(board.model.disk.failed)
    checks = [check for _, check in examine_models(Bundle(board.root, board.config), None)]
    (told,) = (check for check in checks if "has failed on this device" in check.text)
    assert (told.state, "trial-starts" in told.text) == ("warning", True)


def test_progress_counts_bytes(board):
    """Reports of a download say how many bytes of the version are there."""
    rng = random.Random(0)
    manifest, _ = board.office.manifest(2, graphs={"train": rng.randbytes(300_000), "eval": b"eval", "infer": b"infer"})
    board.run(lambda: board.active() == 2, turns=4000, seconds=1.0)
    told = [report.fetched for report in board.office.reports if report.step == "fetching" and report.version == 2]
    assert told == sorted(told)
    assert max(told) <= manifest.total_bytes


def test_the_manifests_tolerance_and_floor_reach_the_trial(board):
    """What the server says of health is what the trainer is given."""
    jobs = []
    trainer = board.agent._hands.trainings._trainer
    start = trainer.start
    trainer.start = lambda job: (jobs.append(job), start(job))
    health = Health(drop=0.25, seconds=7.0, starts=5, tolerance=0.5)
    version(board, 2, health=health)
    board.run(lambda: board.active() == 2)
    (job,) = jobs
    assert (job.health, job.before.version, job.candidate.version) == (health, 1, 2)
    assert msgspec.json.decode(msgspec.json.encode(job), type=type(job)) == job
