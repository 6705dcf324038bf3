"""Whom a rollout is for: tags, profiles, devices that come and go, and rollouts beside each other."""

import pytest

from edgefl.errors import FleetError
from edgefl.rollout_rules import Target
from edgefl.server.rollout_orders import order, roll_back, start_rollout
from edgefl.server.rollout_status import rollout_statuses
from edgefl.server.wanted import wanted
from edgefl.store.database import transaction
from edgefl.store.releases import releases
from edgefl.store.rollouts import newest_rollout
from edgefl.store.tags import tag
from edgefl.store.versions import get_version
from toyrollouts import ALL, NAMES, ONE_THEN_ALL, back, holding, report, say, start, twenty
from toyupdates import MODEL


@pytest.fixture
def fleet(tmp_path):
    """Twenty devices with version 1 as the release; version 2 is held."""
    return twenty(tmp_path)


def test_rollout_for_a_tag_is_for_those_devices_only(fleet):
    """Its version becomes theirs, of newcomers with the tag too, and not the release; a rollback takes it from them."""
    server = fleet.serve()
    with transaction(fleet.database):
        for name in NAMES[:4]:
            tag(fleet.database, name, ["lab"])
    start(fleet, rules=ALL, tags=["lab"])
    assert holding(fleet, 2) == NAMES[:4]
    report(fleet, NAMES[:4])
    server.turns()
    assert newest_rollout(fleet.database, MODEL).state.phase == "finished"
    with transaction(fleet.database):
        tag(fleet.database, NAMES[9], ["lab"])
    assert holding(fleet, 2) == [*NAMES[:4], NAMES[9]]
    assert releases(fleet.database) == {MODEL: 1}
    assert back(fleet).version == 1
    assert holding(fleet, 1) == NAMES


def test_rollout_by_profile_and_by_device(fleet):
    """A profile and a list of devices name who is meant."""
    fleet.provision(tiny="small")
    start(fleet, rules=ALL, profiles=["small"])
    assert holding(fleet, 2) == ["tiny"]
    start(fleet, rules=ALL, devices=["d03", "d05"])
    assert holding(fleet, 2) == ["d03", "d05", "tiny"]


@pytest.fixture
def parted(fleet):
    """The same fleet, four devices of which stand in the north and four in the south."""
    with transaction(fleet.database):
        for names, where in ((NAMES[:4], "north"), (NAMES[4:8], "south")):
            for name in names:
                tag(fleet.database, name, [where])
    return fleet


def phases(fleet):
    """Of all rollouts, oldest first."""
    return [one.state for one in rollout_statuses(fleet.database, ended=True)]


@pytest.mark.parametrize("second", [2, 3])
def test_rollouts_to_different_devices_run_beside_each_other(parted, second):
    """Each has its own stages and ends by itself, of the same version or of two; neither touches the other's devices."""
    parted.push(seed=3, hold=True)
    server = parted.serve()
    start(parted, rules=ALL, tags=["north"])
    start(parted, second, tags=["south"])
    assert phases(parted) == ["running", "running"]
    report(parted, NAMES[:4])
    server.turns()
    assert phases(parted) == ["finished", "running"]
    (canary,) = set(holding(parted, second)) - set(NAMES[:4])
    report(parted, [canary], version=second)
    server.turns()
    report(parted, NAMES[4:8], version=second)
    server.turns()
    assert phases(parted) == ["finished", "finished"]
    assert holding(parted, 2) == NAMES[: 8 if second == 2 else 4]
    assert holding(parted, 1) == NAMES[8:]


def test_a_rollout_that_fails_costs_the_one_beside_it_nothing(parted):
    """Canaries of the north that fail pause the rollout to the north; the south gets the same version."""
    server = parted.serve()
    start(parted, rules=ALL, tags=["north"])
    start(parted, rules=ALL, tags=["south"])
    report(parted, NAMES[:4], "failed", code="engine", error="no")
    report(parted, NAMES[4:8])
    server.turns()
    assert phases(parted) == ["paused", "finished"]
    assert holding(parted, 2) == NAMES[4:8]


@pytest.mark.parametrize("target", [{}, {"devices": ["d03", "d09"]}, {"tags": ["north", "south"]}])
def test_a_rollout_that_meets_others_supersedes_these_alone(parted, target):
    """One device in common is enough; a rollout to all devices meets every other."""
    start(parted, tags=["north"])
    start(parted, tags=["south"])
    start(parted, rules=ALL, **target)
    assert phases(parted) == ["superseded", "running" if "devices" in target else "superseded", "running"]


def test_an_order_asks_which_rollout_if_several_are_open(parted):
    """Nothing is guessed: the error names them, and a number chooses."""
    first = start(parted, tags=["north"]).record.state.id
    second = start(parted, tags=["south"]).record.state.id
    with pytest.raises(FleetError, match=f"2 rollouts.*{first} .*north.* or {second} .*south.*--rollout"):
        say(parted, "pause")
    order(parted.database, MODEL, "pause", parted.clock.wall(), second)
    assert phases(parted) == ["running", "paused"]
    assert [one.id for one in rollout_statuses(parted.database, MODEL)] == [first, second]
    order(parted.database, MODEL, "abort", parted.clock.wall(), first)
    assert say(parted, "resume").record.state.id == second
    assert back(parted).ended == (second,)


def test_a_device_that_comes_to_be_meant_twice_belongs_to_the_newer_rollout(parted):
    """A board that moves from the north to both leaves the older rollout, and is told of the newer one's version."""
    parted.push(seed=3, hold=True)
    server = parted.serve()
    start(parted, rules=ALL, tags=["north"])
    start(parted, 3, rules=ALL, tags=["south"])
    with transaction(parted.database):
        tag(parted.database, NAMES[0], ["south"])
    server.turns(20)
    north, south = rollout_statuses(parted.database, MODEL)
    assert [one.id for one in north.devices] == NAMES[1:4]
    assert [one.id for one in south.devices] == [NAMES[0], *NAMES[4:8]]
    assert holding(parted, 3) == [NAMES[0], *NAMES[4:8]]


def test_device_that_is_provisioned_or_revoked_while_it_runs_joins_or_leaves(fleet):
    """At the last stage a newcomer is told at the server's next look; a revoked device is waited for no longer."""
    server = fleet.serve()
    start(fleet, rules=ALL)
    fleet.provision(late="big")
    with fleet.database:
        fleet.database.execute("UPDATE devices SET revoked=1 WHERE id='d00'")
    server.turns()
    assert holding(fleet, 2) == [*NAMES[1:], "late"]
    assert set(newest_rollout(fleet.database, MODEL).state.devices) == {*NAMES[1:], "late"}


def test_device_without_a_variant_keeps_the_release_before(fleet):
    """A version that was pushed for one profile only is not for the others, and what is held is no substitute for it."""
    fleet.provision(tiny="small")
    only = fleet.push("big", seed=3, hold=True)
    start(fleet, version=only, rules=ALL)
    assert holding(fleet, only) == NAMES
    assert holding(fleet, 1) == ["tiny"]
    server = fleet.serve()
    report(fleet, NAMES, version=only)
    server.turns()
    assert releases(fleet.database) == {MODEL: only}
    assert holding(fleet, 1) == ["tiny"]


def test_first_version_can_be_rolled_out(fleet):
    """A model that has no release yet is held by those that were told; an abort takes it from nobody's disk."""
    fleet.push(model="other", hold=True)
    done = start_rollout(fleet.database, get_version(fleet.database, "other", 1), ONE_THEN_ALL, Target(), 0.0)
    (canary,) = [name for name, models in wanted(fleet.database).items() if [m.model for m in models] == ["other", MODEL]]
    assert done.effects[0].devices == (canary,)
    with pytest.raises(FleetError, match="before"):
        roll_back(fleet.database, "other", 1.0)
    order(fleet.database, "other", "abort", 1.0)
    assert all(len(models) == 1 for models in wanted(fleet.database).values())


@pytest.mark.parametrize(
    ("target", "said"), [({"tags": ["nobody"]}, "no device of the fleet is meant"), ({"devices": ["ghost"]}, "no device 'ghost'")]
)
def test_rollout_to_nobody_is_refused_and_ends_nothing(fleet, target, said):
    """A target without a device is an error, and a rollout that runs goes on."""
    start(fleet)
    with pytest.raises(FleetError, match=said):
        start(fleet, **target)
    assert newest_rollout(fleet.database, MODEL).is_open


def test_release_is_not_rolled_out_again(fleet):
    """A version that everybody is to hold already cannot be staged any more."""
    with pytest.raises(FleetError, match="--hold"):
        start(fleet, version=1)
