"""Rollouts in the running server: what devices say and operators order, and which version each device is to hold then."""

import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toyfleet as toy
from edgefl.errors import FleetError
from edgefl.rollout_rules import Rules, Target, parse_stages
from edgefl.server.rollout_orders import order, roll_back, start_rollout
from edgefl.server.rollout_status import rollout_statuses
from edgefl.server.rollouts import Rollouts
from edgefl.server.wanted import wanted
from edgefl.store.database import open_database, transaction
from edgefl.store.releases import previous_releases, release, releases
from edgefl.store.rollouts import failures, get_rollout, newest_rollout
from edgefl.store.schema import MIGRATIONS
from edgefl.store.tags import all_tags, tag, untag
from edgefl.store.versions import get_version
from edgefl.wire import topics
from edgefl.wire.messages import encode
from edgefl.wire.presence import Installed, Report, State

NAMES = [f"d{i:02}" for i in range(20)]
ONE_THEN_ALL = Rules(stages=parse_stages("1,100%"))
ALL = Rules(stages=parse_stages("100%"))


@pytest.fixture
def fleet(tmp_path):
    """Twenty devices with version 1 as the release; version 2 is held."""
    fleet = toy.ToyFleet(tmp_path)
    fleet.provision(**dict.fromkeys(NAMES, "big"))
    push(fleet)
    fleet.push(seed=2, hold=True)
    return fleet


def push(fleet, **options):
    """Push a version and make it the release, as a push without --hold does."""
    version = fleet.push(**options, hold=True)
    with transaction(fleet.database):
        release(fleet.database, toy.MODEL, version, fleet.clock.wall())
    return version


def start(fleet, version=2, rules=ONE_THEN_ALL, **target):
    """Start a rollout of the toy."""
    meant = Target(**{what: tuple(names) for what, names in target.items()})
    return start_rollout(fleet.database, get_version(fleet.database, toy.MODEL, version), rules, meant, fleet.clock.wall())


def say(fleet, word):
    """An operator's order."""
    return order(fleet.database, toy.MODEL, word, fleet.clock.wall())


def back(fleet, **options):
    """A rollback."""
    return roll_back(fleet.database, toy.MODEL, fleet.clock.wall(), **options)


def holding(fleet, version):
    """The devices that are to hold a version."""
    found = wanted(fleet.database).items()
    return [device for device, models in found if [one.version for one in models] == [version]]


def report(fleet, names, step="activated", version=2, **more):
    """Devices report."""
    for name in names:
        device = fleet.device(name)
        device.say("report", Report(toy.MODEL, version, 0, step, **more))
        device.link.close()


def be_born(fleet, names, version, session=1):
    """Devices say that they are there with a version."""
    for name in names:
        device = fleet.device(name)
        state = State(session, online=True, models=(Installed(toy.MODEL, version, "w1-fp32"),))
        device.link.publish(topics.state(name), encode(state), retain=True)
        device.link.close()


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
    assert newest_rollout(fleet.database, toy.MODEL).state.phase == "finished"
    fleet.provision(newcomer="big")
    assert holding(fleet, 2) == [*NAMES, "newcomer"]
    assert releases(fleet.database) == {toy.MODEL: 2}


def test_assignment_names_the_rollout_and_does_not_change_when_it_ends(fleet):
    """What a device was told in a rollout stays the same word after the end: nobody is told the same again."""
    server = fleet.serve()
    start(fleet, rules=ALL)
    before = wanted(fleet.database)
    report(fleet, NAMES)
    server.turns()
    assert releases(fleet.database) == {toy.MODEL: 2}
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
    record = newest_rollout(fleet.database, toy.MODEL)
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
    assert releases(fleet.database) == {toy.MODEL: 2}
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
    assert newest_rollout(fleet.database, toy.MODEL).state.phase == "finished"


def test_training_reports_show_that_a_device_holds_the_version(fleet):
    """A device that trains the version holds it; a training that fails is no failure of the rollout."""
    server = fleet.serve()
    start(fleet)
    (canary,) = holding(fleet, 2)
    device = fleet.device(canary)
    device.say("report", Report(toy.MODEL, 2, 3, "failed", error="out of memory"))
    server.turns()
    assert newest_rollout(fleet.database, toy.MODEL).state.phase == "running"
    device.say("report", Report(toy.MODEL, 2, 4, "training"))
    server.turns()
    assert newest_rollout(fleet.database, toy.MODEL).state.stage == 1


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
    for said in (Report(toy.MODEL, 1, 0, "failed"), Report("other", 2, 0, "activated"), Report(toy.MODEL, 2, 0, "dancing")):
        fleet.device(canary).say("report", said)
        server.turns()
    assert get_rollout(fleet.database, 1) == before


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
    assert releases(fleet.database) == {toy.MODEL: 3}
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
    assert newest_rollout(fleet.database, toy.MODEL).state.phase == "superseded"


def test_rollback_of_a_running_rollout_keeps_the_release(fleet):
    """A rollback while a rollout runs ends it as rolled back; the release stays, and so does the one before it."""
    start(fleet, rules=ALL)
    assert back(fleet).version == 1
    assert holding(fleet, 1) == NAMES
    assert newest_rollout(fleet.database, toy.MODEL).state.phase == "rolled back"
    assert previous_releases(fleet.database, toy.MODEL) == (1,)


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
    assert newest_rollout(fleet.database, toy.MODEL).state.phase == "finished"
    with transaction(fleet.database):
        tag(fleet.database, NAMES[9], ["lab"])
    assert holding(fleet, 2) == [*NAMES[:4], NAMES[9]]
    assert releases(fleet.database) == {toy.MODEL: 1}
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
    order(parted.database, toy.MODEL, "pause", parted.clock.wall(), second)
    assert phases(parted) == ["running", "paused"]
    assert [one.id for one in rollout_statuses(parted.database, toy.MODEL)] == [first, second]
    order(parted.database, toy.MODEL, "abort", parted.clock.wall(), first)
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
    north, south = rollout_statuses(parted.database, toy.MODEL)
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
    assert set(newest_rollout(fleet.database, toy.MODEL).state.devices) == {*NAMES[1:], "late"}


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
    assert releases(fleet.database) == {toy.MODEL: only}
    assert holding(fleet, 1) == ["tiny"]


def test_first_version_can_be_rolled_out(fleet):
    """A model that has no release yet is held by those that were told; an abort takes it from nobody's disk."""
    fleet.push(model="other", hold=True)
    done = start_rollout(fleet.database, get_version(fleet.database, "other", 1), ONE_THEN_ALL, Target(), 0.0)
    (canary,) = [name for name, models in wanted(fleet.database).items() if [m.model for m in models] == ["other", toy.MODEL]]
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
    assert newest_rollout(fleet.database, toy.MODEL).is_open


def test_release_is_not_rolled_out_again(fleet):
    """A version that everybody is to hold already cannot be staged any more."""
    with pytest.raises(FleetError, match="--hold"):
        start(fleet, version=1)


def test_killed_server_loses_nothing_that_was_decided(fleet):
    """A server that is killed at any look goes on where the rows are; no device is told twice or forgotten."""
    server = fleet.serve()
    start(fleet)
    (canary,) = holding(fleet, 2)
    report(fleet, [canary])
    server.turns(1)
    server.kill()
    server = fleet.serve()
    be_born(fleet, [canary], 2)
    server.turns()
    assert len(holding(fleet, 2)) == 20
    server.kill()
    server = fleet.serve()
    report(fleet, NAMES)
    server.turns()
    assert newest_rollout(fleet.database, toy.MODEL).state.phase == "finished"
    assert fleet.rows("SELECT COUNT(*), COUNT(DISTINCT device) FROM rollout_devices") == [(20, 20)]


def test_locked_database_costs_no_report(fleet):
    """While another process holds the database reports wait; afterwards they count."""
    server = fleet.serve()
    start(fleet)
    server.turns()
    (canary,) = holding(fleet, 2)
    report(fleet, [canary])
    fleet.database.execute("BEGIN IMMEDIATE")
    server.turns(2)
    fleet.database.execute("ROLLBACK")
    server.turns(2)
    assert len(holding(fleet, 2)) == 20


def test_silent_device_times_out(fleet):
    """With a timeout a device that was there when it was told, and says nothing, fails."""
    server = fleet.serve()
    be_born(fleet, NAMES, 1)
    server.turns(3)
    start(fleet, rules=Rules(stages=parse_stages("1,100%"), timeout=60.0))
    (canary,) = holding(fleet, 2)
    server.turns(2, seconds=70.0)
    server.turns(2)
    (status,) = rollout_statuses(fleet.database)
    assert (status.state, status.failed) == ("paused", 1)
    assert canary in holding(fleet, 1)


def test_flood_of_reports_takes_no_room(fleet):
    """Between two looks one report of each step of a device is kept, whatever it says and how often."""
    start(fleet, rules=ALL)
    rollouts = Rollouts(fleet.database, fleet.clock.wall)
    rollouts.look()
    for percent in range(101):
        for step in ("fetching", "deferred", "trial", "anything"):
            rollouts.report("d00", Report(toy.MODEL, 2, 0, step, percent))
    assert len(rollouts._heard) == 3


def test_look_at_two_thousand_devices_is_quick(tmp_path):
    """With 2,000 devices that all report at once a look and the assignments take well below a second; an idle look nothing."""
    fleet = toy.ToyFleet(tmp_path)
    names = [f"d{i:04}" for i in range(2000)]
    fleet.provision(**dict.fromkeys(names, "big"))
    push(fleet)
    fleet.push(seed=2, hold=True)
    start(fleet, rules=Rules(stages=parse_stages("50%,100%")))
    rollouts = Rollouts(fleet.database, fleet.clock.wall)
    rollouts.look()

    def seconds(work):
        began = time.thread_time()  # what others do on this machine does not count
        work()
        return time.thread_time() - began

    assert min(seconds(rollouts.look) for _ in range(3)) < 0.005
    rollouts.report(names[0], Report(toy.MODEL, 2, 0, "fetching", 3))
    one = seconds(rollouts.look)
    for name in names:
        rollouts.report(name, Report(toy.MODEL, 2, 0, "fetching", 50))
    many = seconds(rollouts.look)
    told = seconds(lambda: wanted(fleet.database))
    print(f"one report {1000 * one:.1f} ms, 2,000 reports {1000 * many:.1f} ms, assignments {1000 * told:.1f} ms")
    assert one < 0.15
    assert many < 0.5
    assert told < 0.3


def test_fleet_from_before_rollouts_can_be_rolled_back(tmp_path):
    """In a database of an older edgefl every version was the release when it was pushed: a rollback knows them."""
    step = next(number for number, statements in enumerate(MIGRATIONS) if "CREATE TABLE rollouts" in statements)
    path = tmp_path / "fleet.sqlite"
    with closing(sqlite3.connect(path)) as old:
        for statements in MIGRATIONS[:step]:
            old.executescript(statements)
        old.executemany("INSERT INTO versions VALUES ('cam', ?, 1.0, x'', x'')", [(1,), (2,)])
        old.execute("INSERT INTO releases VALUES ('cam', 2, 1.0)")
        old.execute(f"PRAGMA user_version={step}")
        old.commit()
    with closing(open_database(path)) as database:
        assert previous_releases(database, "cam") == (2, 1)


ACTS = st.one_of(
    st.tuples(
        st.just("start"), st.integers(1, 4), st.sampled_from(["", "lab"]), st.sampled_from(["1,100%", "100%", "1,50%,100%"])
    ),
    st.tuples(st.just("order"), st.sampled_from(["pause", "resume", "promote", "abort"])),
    st.tuples(st.just("rollback")),
    st.tuples(st.just("push")),
    st.tuples(
        st.just("report"), st.sampled_from(["activated", "activated", "failed", "reverted", "fetching"]), st.integers(1, 5)
    ),
    st.tuples(st.just("tag"), st.integers(0, 5)),
    st.tuples(st.just("revoke"), st.integers(0, 5)),
    st.tuples(st.just("later"), st.sampled_from([1.0, 100.0])),
    st.tuples(st.just("restart")),
)


class Player:
    """A small fleet in which anything may happen in any order."""

    def __init__(self, root):
        self.fleet = toy.ToyFleet(root)
        self.fleet.provision(**{name: "small" if name == "d05" else "big" for name in NAMES[:6]})
        push(self.fleet)
        for profiles in (("big",), (), ("big", "small")):
            self.fleet.push(*profiles, seed=len(profiles))
        self.rollouts = Rollouts(self.fleet.database, self.fleet.clock.wall)

    def play(self, act, *more):
        """Do it, or be told why it cannot be done."""
        with suppress(FleetError):
            getattr(self, act)(*more)
        self.fleet.clock.now += 6.0
        self.rollouts.look()

    def start(self, version, tagged, stages):
        """Start a rollout."""
        rules = Rules(stages=parse_stages(stages), timeout=50.0, approve=version == 3)
        start(self.fleet, version, rules, **({"tags": [tagged]} if tagged else {}))

    def order(self, word):
        """An operator's order."""
        say(self.fleet, word)

    def rollback(self):
        """An operator's rollback."""
        back(self.fleet)

    def push(self):
        """A version that is the release at once."""
        push(self.fleet)

    def report(self, step, count):
        """The first devices report on what they are to hold."""
        for device, models in list(wanted(self.fleet.database).items())[:count]:
            for one in models:
                self.rollouts.report(device, Report(one.model, one.version, 0, step))

    def tag(self, number):
        """A device comes into the group, or leaves it."""
        with transaction(self.fleet.database):
            (untag if NAMES[number] in all_tags(self.fleet.database) else tag)(self.fleet.database, NAMES[number], ["lab"])

    def revoke(self, number):
        """A device leaves the fleet, or comes back."""
        with self.fleet.database as database:
            database.execute("UPDATE devices SET revoked=CASE WHEN revoked IS NULL THEN 1 END WHERE id=?", (NAMES[number],))

    def later(self, seconds):
        """Time passes."""
        self.fleet.clock.now += seconds

    def restart(self):
        """The server is another process."""
        self.rollouts = Rollouts(self.fleet.database, self.fleet.clock.wall)


@settings(max_examples=25, deadline=None)
@given(acts=st.lists(ACTS, max_size=25))
def test_every_device_always_has_a_version_that_it_can_hold(acts):
    """Whatever is ordered, pushed, tagged, revoked, reported and restarted, the rows stay sound and nobody is told too much."""
    with TemporaryDirectory() as root:
        player = Player(Path(root))
        database = player.fleet.database
        for act in acts:
            player.play(*act)
            states = rollout_statuses(database, ended=True)
            assert sum(one.is_open for one in states) <= 1
            valid = [name for (name,) in player.fleet.rows("SELECT id FROM devices WHERE revoked IS NULL ORDER BY id")]
            held = wanted(database)
            assert list(held) == valid
            assert wanted(database) == held
            for name, models in held.items():
                assert models or any(device == name for device, _, _ in failures(database))
                for one in models:
                    made = "SELECT 1 FROM variants WHERE version=? AND profile=?"
                    assert player.fleet.rows(made, one.version, player.fleet.profiles[name])
                    said = get_rollout(database, one.rollout) if one.rollout else None
                    assert said is None or said.version == one.version
                    assert said is None or name not in said.state.devices or not said.state.devices[name].failed
            for one in states:
                if one.is_open:
                    told = {name for name, models in held.items() if any(m.rollout == one.id for m in models)}
                    state = get_rollout(database, one.id).state
                    assert told <= {name for name, device in state.devices.items() if device.step != "waiting"}
        player.rollouts._database.close()
