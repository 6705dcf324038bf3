"""Rollouts when the server dies, the database is held, devices are silent or say too much, or are many."""

import sqlite3
import time
from contextlib import closing

import pytest

import toyfleet as toy
from edgefl.rollout_rules import Rules, parse_stages
from edgefl.server.rollout_status import rollout_statuses
from edgefl.server.rollouts import Rollouts
from edgefl.server.wanted import wanted
from edgefl.store.database import open_database
from edgefl.store.releases import previous_releases
from edgefl.store.rollouts import newest_rollout
from edgefl.store.schema import MIGRATIONS
from edgefl.wire.presence import Report
from toyrollouts import ALL, NAMES, be_born, holding, push, report, start, twenty
from toyupdates import MODEL


@pytest.fixture
def fleet(tmp_path):
    """Twenty devices with version 1 as the release; version 2 is held."""
    return twenty(tmp_path)


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
    assert newest_rollout(fleet.database, MODEL).state.phase == "finished"
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
            rollouts.report("d00", Report(MODEL, 2, 0, step, percent))
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
    rollouts.report(names[0], Report(MODEL, 2, 0, "fetching", 3))
    one = seconds(rollouts.look)
    for name in names:
        rollouts.report(name, Report(MODEL, 2, 0, "fetching", 50))
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
