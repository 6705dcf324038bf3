"""The ledger: trainings, rounds and updates as rows, and what goes with them (blobs, locks, the database itself)."""

import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

import toyfleet as toy
from edgefl.errors import FleetError, StoreError
from edgefl.plan import Plan
from edgefl.server.wanted import Said
from edgefl.store.blobs import BlobStore
from edgefl.store.database import changes_by_others, open_database, transaction
from edgefl.store.garbage import keeping_new_blobs, newest_parents, pushed_blobs, remove_garbage
from edgefl.store.ledger import (
    Outcome,
    close_round,
    end_training,
    is_running,
    newest_round,
    newest_training,
    newest_weights,
    rounds,
    start_training,
    trainings,
)
from edgefl.store.lock import file_lock
from edgefl.store.registry import list_devices
from edgefl.store.schema import MIGRATIONS
from edgefl.store.updates import is_stored, known_updates, store_update, waiting_updates
from edgefl.store.versions import get_version, latest_version, participants, variants
from toyupdates import WIDE, head_of, update_of


@pytest.fixture
def fleet(tmp_path):
    """A fleet with devices and one version."""
    fleet = toy.ToyFleet(tmp_path)
    fleet.provision(a="big", b="big", c="small")
    fleet.push()
    return fleet


def store(fleet, training, device, number, now=1.0):
    """Store an update; whether it was."""
    data = update_of(device, number, WIDE.size)
    return store_update(fleet.database, training, device, head_of(device, number, data, variant="w1-fp32"), data, now)


def close(fleet, training, number, counted, *, last=False, result=bytes(32)):
    """Close a round; whether it was."""
    return close_round(fleet.database, training, number, Outcome(counted, result, 0.5, 1.0), 9.0, last=last)


def test_unknown_things_are_named(fleet):
    """A model, version or training that does not exist is an error that names it."""
    with pytest.raises(FleetError, match="no model 'x'"):
        latest_version(fleet.database, "x")
    with pytest.raises(FleetError, match="toy@9"):
        get_version(fleet.database, "toy", 9)
    with pytest.raises(FleetError, match="never been trained"):
        newest_training(fleet.database, "toy")


def test_model_has_one_running_training(fleet):
    """A second training of a model is refused while one runs, and possible after it has ended."""
    training = fleet.train(rounds=2)
    with pytest.raises(FleetError, match="being trained already"):
        fleet.train(rounds=2)
    end_training(fleet.database, training, "stopped")
    again = fleet.train(rounds=2)
    assert [t.state for t in trainings(fleet.database)] == ["stopped", "running"]
    assert newest_training(fleet.database, "toy").id == again


def test_training_ends_once(fleet):
    """A finished training cannot be stopped any more."""
    training = fleet.train(rounds=1)
    assert close(fleet, training, 1, [], last=True)
    end_training(fleet.database, training, "stopped")
    assert newest_training(fleet.database, "toy").state == "finished"


def test_round_closes_in_one_transaction(fleet):
    """Closing counts exactly the named updates, empties them, and opens the next round with the result."""
    training = fleet.train(rounds=3)
    for device in "abc":
        assert store(fleet, training, device, 1)
    assert close(fleet, training, 1, [("a", 1), ("c", 1)], result=b"r" * 32)
    assert [(r.round, r.updates, r.closed, r.weights) for r in rounds(fleet.database, training)][1] == (2, 0, None, b"r" * 32)
    assert [u.device for u in waiting_updates(fleet.database, training)] == ["b"]
    assert fleet.rows("SELECT device, length(data) FROM updates WHERE counted=1 ORDER BY device") == [("a", 0), ("c", 0)]
    assert newest_round(fleet.database, training).round == 2
    assert newest_weights(fleet.database, latest_version(fleet.database, "toy")) == (2, b"r" * 32)


def test_stopped_training_takes_nothing_more(fleet):
    """After the stop neither an update nor a closed round can be entered."""
    training = fleet.train(rounds=3)
    store(fleet, training, "a", 1)
    end_training(fleet.database, training, "stopped")
    assert not store(fleet, training, "b", 1)
    assert not close(fleet, training, 1, [("a", 1)])
    assert not is_running(fleet.database, training)
    assert fleet.rows("SELECT device, counted FROM updates") == [("a", None)]


def test_next_training_takes_over_what_is_not_too_late(fleet):
    """Waiting updates move to the next training of the version if its plan's staleness allows; the others stay known."""
    version = latest_version(fleet.database, "toy")
    training = fleet.train(rounds=9)
    store(fleet, training, "a", 1)
    for number in (1, 2):
        close(fleet, training, number, [])
    store(fleet, training, "b", 3)
    end_training(fleet.database, training, "stopped")
    again = start_training(fleet.database, version, Plan(staleness=1), "", 5.0)
    assert newest_round(fleet.database, again).round == 4
    assert [(u.device, u.round) for u in waiting_updates(fleet.database, again)] == [("b", 3)]
    assert known_updates(fleet.database, "toy", 1, 1) == {("a", 1), ("b", 3)}
    assert known_updates(fleet.database, "toy", 1, 2) == {("b", 3)}


def test_update_is_recognised_by_its_content(fleet):
    """The very same update is known in whatever training of its version; another one of the same round is not that one."""
    training = fleet.train(rounds=9)
    store(fleet, training, "a", 1)
    end_training(fleet.database, training, "stopped")
    data = update_of("a", 1, WIDE.size)
    assert is_stored(fleet.database, "a", head_of("a", 1, data, variant="w1-fp32"))
    assert not is_stored(fleet.database, "b", head_of("b", 1, data, variant="w1-fp32"))
    assert not is_stored(fleet.database, "a", head_of("a", 1, data, variant="w1-fp32", version=2))
    assert not is_stored(fleet.database, "a", head_of("a", 1, b"other", variant="w1-fp32"))


def test_waiting_updates_come_in_the_order_in_which_they_were_stored(fleet):
    """A clock that jumps back does not change the order in which a restarted server folds."""
    training = fleet.train(rounds=2)
    for now, device in ((9.0, "c"), (1.0, "a"), (5.0, "b")):
        store(fleet, training, device, 1, now)
    assert [u.device for u in waiting_updates(fleet.database, training)] == ["c", "a", "b"]


def test_newest_variant_of_each_profile(fleet):
    """A version pushed for one profile replaces what is announced to it, and nothing else."""
    fleet.push("small", seed=1)
    said = Said(fleet.database, list_devices(fleet.database))
    assert [(v.profile, v.manifest.version) for v in said.announced(said.wanted())] == [("big", 1), ("small", 2)]
    assert [v.profile for v in variants(fleet.database, "toy", 2)] == ["small"]
    assert participants(fleet.database, get_version(fleet.database, "toy", 2)) == 1
    assert participants(fleet.database, get_version(fleet.database, "toy", 1)) == 3


def test_revoked_device_takes_no_part(fleet):
    """Participants are valid devices."""
    with transaction(fleet.database):
        fleet.database.execute("UPDATE devices SET revoked=1 WHERE id='a'")
    assert participants(fleet.database, get_version(fleet.database, "toy", 1)) == 2


def test_counting_updates_of_many_rounds_uses_the_index(fleet):
    """The number of updates of each round comes from an index, not from reading all updates for every round."""
    plan = fleet.rows("EXPLAIN QUERY PLAN SELECT COUNT(*) FROM updates WHERE training=1 AND counted=1")
    assert "updates_counted" in plan[0][3]


# Blobs that are needed


def test_garbage_is_what_no_row_and_no_offer_names(fleet):
    """Everything of a push and the newest parents stay, whatever is offered stays, all the rest goes."""
    training = fleet.train(rounds=9)
    old, new = fleet.blobs.put(b"result of round 1"), fleet.blobs.put(b"result of round 2")
    close(fleet, training, 1, [], result=old)
    close(fleet, training, 2, [], result=new)
    offered = fleet.blobs.put(b"on offer")
    (fleet.blobs.root / f".{'0' * 64}.abc.tmp").write_bytes(b"left by a killed process")
    before = pushed_blobs(fleet.database)
    freed = remove_garbage(fleet.blobs, lambda: before | newest_parents(fleet.database) | {offered})
    assert freed == len(b"result of round 1")
    assert [fleet.blobs.has(sha256) for sha256 in (old, new, offered)] == [False, True, True]
    assert all(fleet.blobs.has(sha256) for sha256 in before)
    assert not list(fleet.blobs.root.glob("*.tmp"))


def test_nothing_is_deleted_while_somebody_adds(tmp_path):
    """While a push holds its blobs, even two of them, a collection does nothing."""
    blobs = BlobStore(tmp_path)
    sha256 = blobs.put(b"new")
    with keeping_new_blobs(blobs), keeping_new_blobs(blobs):
        assert remove_garbage(blobs, set) == 0
    assert blobs.has(sha256)
    assert remove_garbage(blobs, set) == 3


# Locks


def test_lock_is_held_by_one_and_freed_by_the_end_of_its_process(tmp_path):
    """A second holder is told so at once; when the first one's process is killed the lock is free."""
    path = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from edgefl.store.lock import file_lock\n"
        "with file_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"held\n"
        with file_lock(path, wait=False) as held:
            assert not held
        child.kill()
    with file_lock(path) as held:
        assert held


def test_lock_that_cannot_be_made_is_worded(tmp_path):
    """A lock below a directory that is not there is a StoreError."""
    with pytest.raises(StoreError, match="cannot lock"), file_lock(tmp_path / "nowhere" / "lock"):
        pass


# The database


def test_old_database_is_brought_up_to_date(tmp_path):
    """A database of the first schema gets the later steps and keeps its rows."""
    path = tmp_path / "old.sqlite"
    with closing(sqlite3.connect(path)) as old, old:
        for statement in MIGRATIONS[0].split(";\n"):
            old.execute(statement)
        old.execute("PRAGMA user_version=1")
        old.execute("INSERT INTO counters VALUES ('x', 7)")
    with closing(open_database(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)
        assert database.execute("SELECT value FROM counters").fetchone()["value"] == 7
        assert database.execute("SELECT 1 FROM sqlite_master WHERE name='updates_counted'").fetchone()


@pytest.mark.parametrize("how", ["no database", "newer", "no directory"])
def test_database_that_cannot_be_used_is_worded(tmp_path, how):
    """A file that is no database, one of a newer edgefl, or one that cannot be there: a StoreError that names the file."""
    path = tmp_path / ("x/fleet.sqlite" if how == "no directory" else "fleet.sqlite")
    if how == "no database":
        path.write_bytes(b"hello, this is no database at all" * 100)
    elif how == "newer":
        open_database(path).close()
        with closing(sqlite3.connect(path)) as newer:
            newer.execute("PRAGMA user_version=99")
    with pytest.raises(StoreError, match=r"fleet\.sqlite"):
        open_database(path)


def test_locked_and_full_databases_say_what_to_do(fleet):
    """What SQLite cannot do now comes as a StoreError with a remedy, and the transaction has changed nothing."""
    with closing(open_database(fleet.root / "fleet.sqlite", busy=0.05)) as other:
        with transaction(fleet.database), pytest.raises(StoreError, match="let that end"), transaction(other):
            pass
        pages = other.execute("PRAGMA page_count").fetchone()[0]
        other.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(StoreError, match="Free some disk space"):
            fill(other)
    assert fleet.rows("SELECT COUNT(*) FROM counters") == [(0,)]


def fill(database):
    """Write more than fits."""
    with transaction(database):
        database.execute("INSERT INTO counters VALUES ('a', 1)")
        database.executemany("INSERT INTO counters VALUES (?, 1)", [("x" * 4000 + str(i),) for i in range(500)])


def test_answers_of_the_database_are_no_failures(fleet):
    """A row that exists already is an IntegrityError, which callers expect."""
    with pytest.raises(sqlite3.IntegrityError), transaction(fleet.database):
        fleet.database.execute("INSERT INTO devices VALUES ('a', 'big', '00', 1.0, NULL)")


def test_changes_by_others_are_seen_and_own_ones_are_not(fleet):
    """The number changes when another connection commits, and only then."""
    seen = changes_by_others(fleet.database)
    with transaction(fleet.database):
        fleet.database.execute("INSERT INTO counters VALUES ('mine', 1)")
    assert changes_by_others(fleet.database) == seen
    with closing(open_database(fleet.root / "fleet.sqlite")) as other, transaction(other):
        other.execute("INSERT INTO counters VALUES ('others', 1)")
    assert changes_by_others(fleet.database) != seen
