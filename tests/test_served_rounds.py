"""Trainings of a fleet in which some boards only answer."""

import pytest

import toyfleet as toy
from edgefl.cli.planning import planned
from edgefl.errors import FleetError
from edgefl.plan import Plan
from edgefl.server.starting import begin_training
from edgefl.store.ledger import last_closed
from edgefl.store.versions import get_version
from toyupdates import MODEL


class Kiosks(toy.ToyFleet):
    """A fleet whose small boards only answer."""

    def _enter(self, model, number, profile, parent, graphs, recipe, said):
        engine = {"engine": "inference"} if profile == "small" else {}
        super()._enter(model, number, profile, parent, graphs, recipe, said | engine)


@pytest.fixture
def fleet(tmp_path):
    """One board that trains, one that answers, one version."""
    fleet = Kiosks(tmp_path)
    fleet.provision(a="big", c="small")
    fleet.push()
    yield fleet
    fleet.database.close()


def states(fleet):
    """Of all trainings, by version."""
    return fleet.rows("SELECT version, state FROM trainings ORDER BY id")


def test_a_training_ends_when_only_boards_that_answer_still_want_its_version(fleet):
    """The board that trains has the next version; the other stays with the first, whose training would wait for nobody."""
    fleet.train(rounds=5, cohort=1)
    served = fleet.serve()
    device = fleet.device("a")
    assert served.answer(device, 1).stored
    fleet.push("big")
    served.turns()
    assert states(fleet) == [(1, "superseded")]
    served.kill()


def test_the_next_version_can_be_trained_though_boards_that_answer_have_the_first(fleet):
    """Without a server that has noticed, the command ends the old training itself."""
    fleet.train(rounds=5, cohort=1)
    fleet.push("big")
    version = get_version(fleet.database, MODEL, 2)
    assert begin_training(fleet.database, version, Plan(rounds=1, cohort=1), "", fleet.clock.wall()).fresh
    assert states(fleet) == [(1, "superseded"), (2, "running")]


def test_a_version_that_nobody_can_train_says_that_its_boards_only_answer(fleet):
    """The boards are there, and are not what is missing."""
    fleet.push("small")
    with pytest.raises(FleetError, match=r"no device of the fleet can train.*only answer.*profile that trains"):
        planned(fleet.database, get_version(fleet.database, MODEL, 2), None, {})


def test_the_last_closed_round_is_the_one_that_the_newest_weights_come_from(fleet):
    """An open round has learned nothing yet."""
    version = get_version(fleet.database, MODEL, 1)
    fleet.train(rounds=5, cohort=1)
    assert last_closed(fleet.database, version) == 0
    served = fleet.serve()
    device = fleet.device("a")
    assert served.answer(device, 1).stored
    served.turns()
    assert fleet.rows("SELECT round, result IS NULL FROM rounds ORDER BY round") == [(1, 0), (2, 1)]
    assert last_closed(fleet.database, version) == 1
    served.kill()
