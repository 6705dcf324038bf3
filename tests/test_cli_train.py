"""`edgefl train`: starting, stopping and following a training."""

import json
import threading

import pytest

from edgefl.cli.main import run
from edgefl.server.founding import create_fleet
from edgefl.server.status import fleet_status
from edgefl.store.database import open_database
from edgefl.store.ledger import newest_training, trainings
from trainstart import close, commanded, start


@pytest.fixture(scope="module")
def founded(tmp_path_factory):
    """A new fleet directory, to be copied."""
    return create_fleet(tmp_path_factory.mktemp("new") / "fleet", name="test").path


@pytest.fixture
def fleet(founded, tmp_path, monkeypatch):
    """A fleet directory with four devices and one version; commands find it."""
    return commanded(founded, tmp_path, monkeypatch)


def test_unknown_model_and_empty_fleet_are_named(fleet, capsys):
    """A model that was never pushed, and a version that no device can train, are refused with what to do."""
    assert run(["train", "start", "nothing"]) == 2
    assert "edgefl push nothing" in capsys.readouterr().err
    with fleet.database:
        fleet.database.execute("UPDATE devices SET revoked=1")
    assert start() == 2
    assert "no device of the fleet can train toy@1" in capsys.readouterr().err


def test_the_races_own_cohort_is_shown(fleet, capsys):
    """The start line says when the race closes and when later rounds do; status shows the cohort of the open round."""
    assert start("--jump-start", "1", "--quorum", "3") == 0
    line = capsys.readouterr().out
    assert "the jump-start closes with 1 updates, or after 600 s with 1; a later round closes with 4 updates" in line
    assert fleet_status(fleet.database, "test").trainings[0].cohort == 1
    close(fleet.database, newest_training(fleet.database, "toy").id, 1)
    assert fleet_status(fleet.database, "test").trainings[0].cohort == 4


@pytest.mark.usefixtures("fleet")
def test_second_start_and_second_stop_are_refused(capsys):
    """A model trains with one plan at a time, and what does not run cannot be stopped."""
    assert [start(), start("--rounds", "3")] == [0, 2]
    assert "edgefl train stop toy" in capsys.readouterr().err
    assert [run(["train", "stop", "toy"]), run(["train", "stop", "toy"])] == [0, 2]
    assert "not being trained" in capsys.readouterr().err


def test_locked_database_is_a_machines_error(fleet, capsys, monkeypatch):
    """When another program holds the database for too long the command says so and exits with 4."""
    monkeypatch.setattr("edgefl.store.database.open_database.__kwdefaults__", {"busy": 0.05})
    fleet.database.execute("BEGIN IMMEDIATE")
    assert start() == 4
    assert "Another program holds it" in capsys.readouterr().err
    fleet.database.rollback()


def test_follow_of_what_has_ended_prints_its_rounds(fleet, capsys):
    """The newest training's rounds, one line each, and how it ended; with --json one object each and nothing else."""
    training = fleet.train(rounds=2)
    close(fleet.database, training, 1)
    close(fleet.database, training, 2, last=True)
    assert run(["train", "follow", "toy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "round 1: 0 updates, 0 B up, 0 B down  loss 1.0000  accuracy 0.2500"
    assert (len(lines), lines[2]) == (3, "toy@1: finished")
    assert run(["train", "follow", "toy", "--json"]) == 0
    rounds = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["round"], r["open"], r["accuracy"]) for r in rounds] == [(1, False, 0.25), (2, False, 0.5)]


def test_follow_waits_for_what_runs(fleet, capsys, monkeypatch):
    """Rounds are printed as they close, each once, also of a second training, until the training is stopped."""
    monkeypatch.setattr("edgefl.cli.train.LOOK_EVERY", 0.01)
    first = fleet.train(rounds=1)
    close(fleet.database, first, 1, last=True)
    training = fleet.train(rounds=5)
    done = threading.Thread(target=run, args=(["train", "follow", "toy"],))
    done.start()
    with open_database(fleet.root / "fleet.sqlite") as database:
        for number in (2, 3):
            close(database, training, number)
    run(["train", "stop", "toy"])
    done.join(60)
    assert not done.is_alive()
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("stopped")]
    assert [line.split(":")[0] for line in lines] == ["round 2", "round 3", "toy@1"]
    assert lines[-1] == "toy@1: stopped"


@pytest.mark.usefixtures("fleet")
def test_follow_of_what_never_was_is_refused(capsys):
    """A model that has never been trained is an error with the command to start it."""
    assert run(["train", "follow", "toy"]) == 2
    assert "edgefl train start toy" in capsys.readouterr().err


def test_the_same_start_again_changes_nothing(fleet, capsys):
    """A command that was killed after its work, or whose answer was lost, may be given again; another plan is refused."""
    assert start("--rounds", "7") == 0
    first = newest_training(fleet.database, "toy").id
    assert start("--rounds", "7") == 0
    assert "with this very plan already" in capsys.readouterr().out
    assert newest_training(fleet.database, "toy").id == first
    assert start("--rounds", "8") == 2
    assert "with another plan" in capsys.readouterr().err


@pytest.mark.parametrize("looks", [True, False])
def test_a_start_after_a_push_does_not_wait_for_the_server(fleet, looks):
    """The training of a version that no device is to have any more is over, whether or not a server has looked meanwhile."""
    assert start() == 0
    fleet.push()
    if looks:
        fleet.serve().turns()
    assert start() == 0
    assert [(t.version, t.state) for t in trainings(fleet.database)] == [(1, "superseded"), (2, "running")]


def test_a_version_that_some_devices_keep_is_trained_until_it_is_stopped(fleet, capsys):
    """While a profile has no variant of the newest version, its devices go on with the older one, and so does its training."""
    assert start() == 0
    fleet.push("big")
    assert start() == 2
    assert "in version 1, which devices still have" in capsys.readouterr().err
    assert [t.state for t in trainings(fleet.database)] == ["running"]
