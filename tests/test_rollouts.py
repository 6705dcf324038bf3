"""Rollouts in the running server: from the canary to the release, by what devices report."""

import pytest

from edgefl.rollout_rules import Rules, parse_stages
from edgefl.server.rollout_status import rollout_statuses
from edgefl.server.wanted import wanted
from edgefl.store.releases import releases
from edgefl.store.rollouts import get_rollout, newest_rollout
from edgefl.wire.presence import Report
from toyrollouts import ALL, NAMES, be_born, holding, report, say, start, twenty
from toyupdates import MODEL


@pytest.fixture
def fleet(tmp_path):
    """Twenty devices with version 1 as the release; version 2 is held."""
    return twenty(tmp_path)


def test_rollout_goes_from_the_canary_to_the_release(fleet):
    """One device is told, then all; when 90 % hold the version it is the release, for newcomers too."""
    server = fleet.serve()
    start(fleet)
    (canary,) = holding(fleet, 2)
    report(fleet, [canary], "fetching", percent=30, fetched=300)
    server.turns()
    assert len(holding(fleet, 2)) == 1
    report(fleet, [canary])
    server.turns()
    assert holding(fleet, 2) == NAMES
    report(fleet, NAMES[:18])
    server.turns()
    assert newest_rollout(fleet.database, MODEL).state.phase == "finished"
    fleet.provision(newcomer="big")
    assert holding(fleet, 2) == [*NAMES, "newcomer"]
    assert releases(fleet.database) == {MODEL: 2}


def test_assignment_names_the_rollout_and_does_not_change_when_it_ends(fleet):
    """What a device was told in a rollout stays the same word after the end: nobody is told the same again."""
    server = fleet.serve()
    start(fleet, rules=ALL)
    before = wanted(fleet.database)
    report(fleet, NAMES)
    server.turns()
    assert releases(fleet.database) == {MODEL: 2}
    assert wanted(fleet.database) == before
    assert {models[0].rollout for models in before.values()} == {1}


def test_failing_canaries_stop_it_and_go_back(fleet):
    """When three of ten canaries fail the rollout pauses, these three are to hold the release, and ten were never told."""
    server = fleet.serve()
    start(fleet, rules=Rules(stages=parse_stages("10,100%")))
    told = holding(fleet, 2)
    report(fleet, told[:3], "reverted", code="trial", error="accuracy fell by 0.2")
    report(fleet, told[3:])
    server.turns()
    record = newest_rollout(fleet.database, MODEL)
    assert record.state.phase == "paused"
    assert "trial 3" in record.state.reason
    assert holding(fleet, 2) == told[3:]
    assert len(holding(fleet, 1)) == 13


def test_resumed_rollout_leaves_out_what_has_failed_even_as_the_release(fleet):
    """After a resume the others get the version and it becomes the release; the device that failed keeps the one before."""
    server = fleet.serve()
    start(fleet)
    (canary,) = holding(fleet, 2)
    report(fleet, [canary], "failed", code="fit")
    server.turns()
    say(fleet, "resume")
    for _ in range(2):
        report(fleet, holding(fleet, 2))
        server.turns()
    assert releases(fleet.database) == {MODEL: 2}
    assert holding(fleet, 1) == [canary]
    start(fleet, rules=ALL, devices=[canary])
    assert holding(fleet, 1) == []


def test_abort_brings_everybody_back(fleet):
    """After an abort the release is what everybody is to hold, also those that hold the version."""
    server = fleet.serve()
    start(fleet, rules=ALL)
    report(fleet, NAMES[:5])
    server.turns()
    say(fleet, "abort")
    assert holding(fleet, 1) == NAMES


def test_lost_report_does_not_stall_the_rollout(fleet):
    """A birth whose inventory shows the version counts like the report, also one that was heard by a server before this."""
    start(fleet)
    (canary,) = holding(fleet, 2)
    server = fleet.serve()
    be_born(fleet, [canary], 2)
    server.turns()
    assert len(holding(fleet, 2)) == 20
    server.kill()
    server = fleet.serve()
    be_born(fleet, NAMES, 2, session=2)
    server.turns(1)
    server.kill()
    fleet.serve(steps=12)
    assert newest_rollout(fleet.database, MODEL).state.phase == "finished"


def test_training_reports_show_that_a_device_holds_the_version(fleet):
    """A device that trains the version holds it; a training that fails is no failure of the rollout."""
    server = fleet.serve()
    start(fleet)
    (canary,) = holding(fleet, 2)
    device = fleet.device(canary)
    device.say("report", Report(MODEL, 2, 3, "failed", error="out of memory"))
    server.turns()
    assert newest_rollout(fleet.database, MODEL).state.phase == "running"
    device.say("report", Report(MODEL, 2, 4, "training"))
    server.turns()
    assert newest_rollout(fleet.database, MODEL).state.stage == 1


def test_trouble_of_a_device_is_shown(fleet):
    """What a device tells of its troubles stands in the status until it has got over them."""
    server = fleet.serve()
    start(fleet)
    (canary,) = holding(fleet, 2)
    fleet.device(canary).say("report", Report("none", 0, 0, "failed", error="disk full", code="disk"))
    server.turns()
    (status,) = rollout_statuses(fleet.database)
    (device,) = [one for one in status.devices if one.id == canary]
    assert (device.code, device.error, device.step) == ("disk", "disk full", "told")


def test_report_of_another_version_or_model_says_nothing(fleet):
    """A late report of the version before, of another model, or of a step that does not exist changes nothing."""
    server = fleet.serve()
    start(fleet)
    (canary,) = holding(fleet, 2)
    before = get_rollout(fleet.database, 1)
    for said in (Report(MODEL, 1, 0, "failed"), Report("other", 2, 0, "activated"), Report(MODEL, 2, 0, "dancing")):
        fleet.device(canary).say("report", said)
        server.turns()
    assert get_rollout(fleet.database, 1) == before
