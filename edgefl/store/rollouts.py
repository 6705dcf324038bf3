"""Rollouts as rows of the fleet's database.

Model: a rollout is *open* (running, waiting, paused) or has ended. One that has ended may be *kept*: it is over, and what it has
told devices still counts, until another word about the model is said. Kept are a finished rollout, and a superseded one for
those devices that had got as far as to hold its version.

Rules: everything is done in the transaction that is open, so that what follows from an event is written as a whole before
anything of it is done. Writing the same state twice changes nothing. Open rollouts of a model share no device: where their
targets come to meet, a device belongs to the newest.
"""

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import msgspec

from edgefl.errors import FleetError
from edgefl.rollout_rules import Rules, Target
from edgefl.server.rollout_events import Member
from edgefl.server.rollout_state import FAILURES, OPEN, Device, Rollout
from edgefl.store.tags import all_tags
from edgefl.wire.messages import decode
from edgefl.wire.presence import State

_OPEN = ", ".join(f"'{phase}'" for phase in OPEN)
_FAILURES = ", ".join(f"'{step}'" for step in FAILURES)
_COLUMNS = ", ".join(Device.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class RolloutRecord:
    """A rollout of a version; `previous` is what devices that fail go back to, None for a first version. Times since 1970."""

    model: str
    version: int
    previous: int | None
    target: Target
    started: float
    changed: float
    kept: bool
    state: Rollout

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.state.phase in OPEN


def add_rollout(
    database: sqlite3.Connection, version: tuple[str, int], previous: int | None, rules: Rules, target: Target, now: float
) -> RolloutRecord:
    """Enter a running rollout of `version` (model, number) that has told nobody yet."""
    encode = msgspec.msgpack.encode
    cursor = database.execute(
        """INSERT INTO rollouts (model, version, previous, rules, target, state, stage, started, changed)
           VALUES (?, ?, ?, ?, ?, 'running', 0, ?, ?)""",
        (*version, previous, encode(rules), encode(target), now, now),
    )
    return get_rollout(database, int(cursor.lastrowid or 0))


def get_rollout(database: sqlite3.Connection, rollout: int) -> RolloutRecord:
    """One rollout with its devices. Raises FleetError when there is none with this number."""
    row = database.execute("SELECT * FROM rollouts WHERE id=?", (rollout,)).fetchone()
    if row is None:
        raise FleetError(f"there is no rollout {rollout}", remedy="See `edgefl rollout status --all`")
    rows = database.execute(f"SELECT device, {_COLUMNS} FROM rollout_devices WHERE rollout=? ORDER BY device", (rollout,))  # noqa: S608 - constants
    devices = dict(map(_device, rows))
    rules = msgspec.msgpack.decode(row["rules"], type=Rules)
    return RolloutRecord(
        row["model"], row["version"], row["previous"], msgspec.msgpack.decode(row["target"], type=Target),
        row["started"], row["changed"], bool(row["kept"]),
        Rollout(rollout, rules, row["state"], row["stage"], row["reason"], devices),
    )  # fmt: skip


def _device(row: sqlite3.Row) -> tuple[str, Device]:
    name, step, stage, percent, fetched, code, error, since, aside, changed = row
    return name, Device(step, stage, percent, fetched, code, error, since, bool(aside), changed)


def write_rollout(database: sqlite3.Connection, before: RolloutRecord, state: Rollout, now: float) -> RolloutRecord:
    """Write what has changed of a rollout, and whether it is kept; the record as it is then."""
    old = before.state
    if (state.phase, state.stage) != (old.phase, old.stage):
        kept = state.phase in {"finished", "superseded"}
        before = replace(before, changed=now, kept=kept)
    record = replace(before, state=state)
    if (state.phase, state.stage, state.reason) != (old.phase, old.stage, old.reason):
        database.execute(
            "UPDATE rollouts SET state=?, stage=?, reason=?, changed=?, kept=? WHERE id=?",
            (state.phase, state.stage, state.reason, record.changed, record.kept, state.id),
        )
    gone = [(state.id, name) for name in old.devices.keys() - state.devices.keys()]
    database.executemany("DELETE FROM rollout_devices WHERE rollout=? AND device=?", gone)
    news = [(state.id, name, *_values(one)) for name, one in state.devices.items() if one != old.devices.get(name)]
    places = ", ".join("?" * (2 + len(Device.__dataclass_fields__)))
    insert = f"INSERT OR REPLACE INTO rollout_devices (rollout, device, {_COLUMNS}) VALUES ({places})"  # noqa: S608 - constants
    database.executemany(insert, news)
    return record


def _values(device: Device) -> tuple[object, ...]:
    return tuple(getattr(device, name) for name in Device.__dataclass_fields__)


def members(database: sqlite3.Connection, record: RolloutRecord) -> dict[str, Member]:
    """The devices that a rollout is meant for now: valid, in its target, with a variant of the version for their profile."""
    rows = database.execute(
        """SELECT d.id, d.profile, p.online, p.seen, p.state FROM devices d
           JOIN variants v ON v.profile=d.profile AND v.model=? AND v.version=?
           LEFT JOIN presence p ON p.device=d.id WHERE d.revoked IS NULL ORDER BY d.id""",
        (record.model, record.version),
    )
    newer = [get_rollout(database, number).target for number in open_rollouts(database, record.model) if number > record.state.id]
    tags = all_tags(database) if any(target.tags for target in (record.target, *newer)) else {}
    found = {}
    for row in rows:
        known = (row["id"], row["profile"], tags.get(row["id"], ()))
        if record.target.includes(*known) and not any(target.includes(*known) for target in newer):
            found[row["id"]] = _member(row, record)
    return found


def _member(row: sqlite3.Row, record: RolloutRecord) -> Member:
    if row["state"] is None:
        return Member()
    held = any((one.model, one.version) == (record.model, record.version) for one in decode(row["state"], State).models)
    return Member(bool(row["online"]), row["seen"], held)


def heeded(database: sqlite3.Connection, model: str | None = None) -> dict[int, tuple[str, int, str]]:
    """Model, version and phase of the rollouts that say something to devices: open or kept, of one model or all, oldest first."""
    says = f"(state IN ({_OPEN}) OR kept)"
    rows = database.execute(
        f"SELECT id, model, version, state FROM rollouts WHERE {says} AND model=COALESCE(?, model) ORDER BY id",  # noqa: S608 - constants
        (model,),
    )
    return {row["id"]: (row["model"], row["version"], row["state"]) for row in rows}


def open_rollouts(database: sqlite3.Connection, model: str) -> list[int]:
    """Numbers of the rollouts of a model that have not ended, oldest first. Raises StoreError."""
    rows = database.execute(f"SELECT id FROM rollouts WHERE state IN ({_OPEN}) AND model=? ORDER BY id", (model,))  # noqa: S608 - constants
    return [number for (number,) in rows]


def newest_rollout(database: sqlite3.Connection, model: str) -> RolloutRecord:
    """The rollout of a model that was started last.

    Raises:
        FleetError: there has been none.
    """
    (number,) = database.execute("SELECT MAX(id) FROM rollouts WHERE model=?", (model,)).fetchone()
    if number is None:
        raise FleetError(f"model {model!r} has never been rolled out", remedy=f"Start it: edgefl rollout start {model}")
    return get_rollout(database, number)


def rollout_numbers(database: sqlite3.Connection, *, all_of_them: bool) -> list[int]:
    """Numbers of all rollouts, or of those that are open and the newest of each model, in the order of their start."""
    every = f"SELECT id, state IN ({_OPEN}) OR id IN (SELECT MAX(id) FROM rollouts GROUP BY model) FROM rollouts ORDER BY id"  # noqa: S608 - constants
    return [number for number, shown in database.execute(every) if shown or all_of_them]


def drop_kept(database: sqlite3.Connection, model: str, phases: Iterable[str] = ("finished", "superseded")) -> None:
    """Let rollouts of a model that have ended in these phases say no more."""
    database.executemany("UPDATE rollouts SET kept=0 WHERE model=? AND state=?", [(model, phase) for phase in phases])


def failures(database: sqlite3.Connection) -> Mapping[tuple[str, str, int], int | None]:
    """For each device, model and version that it has failed with, when it was told of it last: what it goes back to."""
    rows = database.execute(
        f"""SELECT d.device, r.model, r.version, r.previous FROM rollout_devices d JOIN rollouts r ON r.id=d.rollout
            WHERE d.step IN ({_FAILURES}) AND NOT EXISTS (
              SELECT 1 FROM rollouts s JOIN rollout_devices e ON e.rollout=s.id AND e.device=d.device
              WHERE s.model=r.model AND s.version=r.version AND s.id>r.id AND e.step<>'waiting') ORDER BY r.id"""  # noqa: S608 - constants
    )
    return {(device, model, version): previous for device, model, version, previous in rows}
