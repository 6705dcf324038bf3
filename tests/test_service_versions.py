"""The server when versions come and trainings end: what is announced then, which files are served, which are kept."""

import msgspec
import pytest

import toyfleet as toy
from edgefl.server.status import fleet_status
from edgefl.server.variants import load_parent
from edgefl.store.garbage import keeping_new_blobs, pushed_blobs
from edgefl.store.ledger import end_training, rounds
from edgefl.wire import topics
from edgefl.wire.blocks import want
from toyupdates import WIDE


@pytest.fixture
def fleet(tmp_path):
    """A fleet of two wide and two narrow devices with one version."""
    return toy.fleet_of_four(tmp_path)


def test_wanted_block_of_the_current_round_is_served_and_of_an_old_one_is_not(fleet):
    """Weights of this round and the one before can be fetched; those of earlier rounds are gone, from the disk too."""
    fleet.train(rounds=9, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    refs = []
    for number in range(1, 5):
        device.hear()
        refs.append(device.orders[-1].weights)
        device.send(number)
        server.turns()
    device.hear()
    refs.append(device.orders[-1].weights)
    for ref in refs:
        device.say("want", want(ref, [0]))
        server.turns(3)
    sent = [fleet.broker.published[topics.block(ref.sha256.hex())] for ref in refs]
    assert sent == [1, 0, 0, 1, 1]  # the first are the version's own, the manifest lists them
    assert all(fleet.blobs.has(ref.sha256) for ref in refs)  # late updates may be coded with the old ones


def test_push_in_progress_keeps_its_blobs(fleet):
    """What a push has put and not yet entered survives the closing of a round, and is garbage once the push has ended."""
    fleet.train(rounds=9, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    with keeping_new_blobs(fleet.blobs):
        sha256 = fleet.blobs.put(b"not yet entered")
        device.send(1)
        server.turns()
        assert fleet.blobs.has(sha256)
    device.send(2)
    server.turns()
    assert server.training.state.number == 3
    assert not fleet.blobs.has(sha256)


def test_newer_version_for_all_profiles_ends_the_training(fleet):
    """A training whose version nobody is to have any more ends as superseded; its orders are taken back; the next can start."""
    fleet.train(rounds=5, cohort=2)
    server, device = fleet.serve(), fleet.device("a")
    device.send(1)
    server.turns()
    assert device.hear().stored
    fleet.push(seed=1)
    server.turns(2)
    assert fleet.rows("SELECT state FROM trainings") == [("superseded",)]
    assert not [topic for topic in fleet.broker.retained if "/round/" in topic]
    device.send(1)  # again: its receipt may have been lost
    server.turns()
    assert device.hear().stored
    device.send(2)
    server.turns()
    assert not device.hear().stored
    fleet.train(rounds=5, cohort=2)
    server.turns(2)
    device.hear()
    assert (device.orders[-1].version, device.orders[-1].round) == (2, 1)


def test_newer_version_for_some_profiles_lets_the_others_train_on(fleet):
    """The training goes on for the profiles that are still announced its version."""
    fleet.train(rounds=5, cohort=1)
    server, device = fleet.serve(), fleet.device("c")
    fleet.push("big", seed=1)
    server.turns(2)
    assert (fleet.announced("big"), fleet.announced("small")) == (2, 1)
    device.send(1)
    server.turns()
    assert device.hear().stored
    assert server.training.state.number == 2


def test_stopped_training_announces_the_last_closed_rounds_weights(fleet):
    """After a stop the standing order has no task and the weights that the open round began with; updates are refused."""
    training = fleet.train(rounds=5, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    device.send(1)
    server.turns()
    weights = server.training.offer.files[device.variant]
    end_training(fleet.database, training, "stopped")
    server.turns(2)
    device.send(2)
    server.turns()
    assert not device.hear().stored
    assert (device.orders[-1].task, device.orders[-1].weights) == (None, weights)
    assert fleet.rows("SELECT state FROM trainings") == [("stopped",)]


def test_newest_result_is_a_blob_that_outlives_everything(fleet):
    """The last result of every version, trained or not, stays in the blob store."""
    fleet.train(rounds=2, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    for number in (1, 2):
        device.send(number)
        server.turns()
    fleet.push(seed=1)
    fleet.train(rounds=2, cohort=1)
    server.turns(2)
    device.send(1, version=2)
    server.turns(2)
    ((first,),) = fleet.rows("SELECT result FROM rounds WHERE training=1 AND round=2")
    assert len(load_parent(fleet.blobs, first)) == WIDE.size
    for (sha256,) in fleet.rows("SELECT weights FROM versions"):
        assert fleet.blobs.has(sha256)
    assert msgspec.json.encode(fleet_status(fleet.database, "toy"))


def test_a_round_that_closes_right_after_a_push_leaves_its_files_alone(fleet):
    """The garbage of a round is collected before the server has looked at the new version: that version's blobs stay."""
    fleet.train(rounds=3, cohort=1)
    server, device = fleet.serve(), fleet.device("a")
    server.turns(1, seconds=0.0)  # it has just looked
    fleet.push(seed=2, hold=True)
    pushed = pushed_blobs(fleet.database)
    device.send(1)
    server.hear()
    assert [one.round for one in rounds(fleet.database, 1)][:1] == [1]
    assert all(fleet.blobs.intact(sha256) for sha256 in pushed)
