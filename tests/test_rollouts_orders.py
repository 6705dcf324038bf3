"""What operators order of rollouts: newer ones, an end, the way back, and what the release is then."""

import pytest

from edgefl.errors import FleetError
from edgefl.store.releases import previous_releases, releases
from edgefl.store.rollouts import get_rollout, newest_rollout
from toyrollouts import ALL, NAMES, back, holding, push, report, say, start, twenty
from toyupdates import MODEL


@pytest.fixture
def fleet(tmp_path):
    """Twenty devices with version 1 as the release; version 2 is held."""
    return twenty(tmp_path)


def test_newer_rollout_supersedes_the_running_one(fleet):
    """Those that hold the superseded version keep it until their turn; those on the way to it drop it; all end at the newest."""
    server = fleet.serve()
    start(fleet, rules=ALL)
    report(fleet, NAMES[:5])
    report(fleet, NAMES[5:], "fetching", percent=50)
    server.turns()
    fleet.push(seed=3, hold=True)
    start(fleet, version=3)
    assert get_rollout(fleet.database, 1).state.phase == "superseded"
    (canary,) = holding(fleet, 3)
    assert holding(fleet, 2) == [name for name in NAMES[:5] if name != canary]
    report(fleet, [canary], version=3)
    server.turns()
    assert holding(fleet, 3) == NAMES
    report(fleet, NAMES, version=3)
    report(fleet, NAMES[5:8], version=2)
    server.turns()
    assert releases(fleet.database) == {MODEL: 3}
    assert holding(fleet, 3) == NAMES


def test_abort_of_the_newer_rollout_ends_what_the_older_one_said(fleet):
    """An abort means the release, not the version that was superseded."""
    server = fleet.serve()
    start(fleet, rules=ALL)
    report(fleet, NAMES[:5])
    server.turns()
    fleet.push(seed=3, hold=True)
    start(fleet, version=3)
    say(fleet, "abort")
    assert holding(fleet, 1) == NAMES


def test_push_without_hold_supersedes_a_rollout(fleet):
    """A version that becomes the release by a push is what everybody is to hold."""
    start(fleet)
    push(fleet, seed=3)
    assert holding(fleet, 3) == NAMES
    assert newest_rollout(fleet.database, MODEL).state.phase == "superseded"


def test_rollback_of_a_running_rollout_keeps_the_release(fleet):
    """A rollback while a rollout runs ends it as rolled back; the release stays, and so does the one before it."""
    start(fleet, rules=ALL)
    assert back(fleet).version == 1
    assert holding(fleet, 1) == NAMES
    assert newest_rollout(fleet.database, MODEL).state.phase == "rolled back"
    assert previous_releases(fleet.database, MODEL) == (1,)


def test_rollback_takes_off_release_after_release(fleet):
    """Each rollback goes one release further back; what was rolled back or held is never gone back to."""
    server = fleet.serve()
    start(fleet, rules=ALL)
    report(fleet, NAMES)
    server.turns()
    fleet.push(seed=3, hold=True)
    push(fleet, seed=4)
    assert holding(fleet, 4) == NAMES
    assert back(fleet).version == 2
    push(fleet, seed=5)
    assert back(fleet).version == 2
    assert back(fleet).version == 1
    assert holding(fleet, 1) == NAMES
    with pytest.raises(FleetError, match="before"):
        back(fleet)
    assert back(fleet, to=3).version == 3
    assert holding(fleet, 3) == NAMES


def test_rollback_of_a_finished_rollout_says_so(fleet):
    """A finished rollout whose version is taken back is shown as rolled back, and its failures stay known."""
    server = fleet.serve()
    start(fleet, rules=ALL)
    report(fleet, NAMES)
    server.turns()
    assert back(fleet).ended == (1,)
    assert get_rollout(fleet.database, 1).state.phase == "rolled back"


def test_trying_again_does_not_stand_in_the_way_of_a_rollback(fleet):
    """A rollout that tries the release again on one device, running or finished, is not what a rollback undoes."""
    server = fleet.serve()
    start(fleet, rules=ALL)
    report(fleet, NAMES[1:])
    report(fleet, NAMES[:1], "failed")
    server.turns()
    assert holding(fleet, 1) == NAMES[:1]
    start(fleet, rules=ALL, devices=NAMES[:1])
    report(fleet, NAMES[:1])
    server.turns()
    assert holding(fleet, 2) == NAMES
    assert back(fleet).version == 1
    assert holding(fleet, 1) == NAMES
