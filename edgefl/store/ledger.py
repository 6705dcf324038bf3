"""What the server must never forget about versions, trainings, rounds and updates: rows of the fleet's database.

Rules: an update is inserted once per (training, device, round), or not at all; closing a round, marking its updates as counted
and opening the next one is a single transaction. Whoever reads the ledger after a crash sees the moment before it or the moment
after it, never between.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from edgefl.errors import FleetError
from edgefl.layout import Layout
from edgefl.plan import Plan
from edgefl.wire.messages import Manifest, Signed, UpdatePart, decode


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One push of a model: the parent's layout and the SHA-256 of its float32 vector."""

    model: str
    version: int
    layout: Layout
    weights: bytes


@dataclass(frozen=True, slots=True)
class VariantRecord:
    """A variant of a version as made for one profile; `signed` is the manifest as it is announced."""

    profile: str
    precision: str
    manifest: Manifest
    signed: bytes


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """A training and how the operator wanted it; `state` is running, stopped or finished."""

    id: int
    model: str
    version: int
    plan: Plan
    holdout: str
    state: str
    first: int

    @property
    def last(self) -> int:
        """Number of its last round."""
        return self.first + self.plan.rounds - 1


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One round of a training; `result`, `accuracy` and `loss` are None until it is closed and evaluated."""

    round: int
    opened: float
    closed: float | None
    weights: bytes
    result: bytes | None
    accuracy: float | None
    loss: float | None
    uplink: int
    downlink: int
    updates: int


@dataclass(frozen=True, slots=True)
class UpdateRecord:
    """A stored update; `round` is the one that the device trained for."""

    device: str
    round: int
    variant: str
    samples: int
    data: bytes


def latest_version(database: sqlite3.Connection, model: str) -> VersionRecord:
    """The newest version of a model.

    Raises:
        FleetError: it has never been pushed.
    """
    row = database.execute("SELECT * FROM versions WHERE model=? ORDER BY version DESC LIMIT 1", (model,)).fetchone()
    if row is None:
        raise FleetError(f"the fleet has no model {model!r}", remedy=f"Push it first: edgefl push {model}")
    return _version(row)


def get_version(database: sqlite3.Connection, model: str, version: int) -> VersionRecord:
    """One version of a model.

    Raises:
        FleetError: there is no such version.
    """
    row = database.execute("SELECT * FROM versions WHERE model=? AND version=?", (model, version)).fetchone()
    if row is None:
        raise FleetError(f"the fleet has no version {model}@{version}", remedy="List what there is: edgefl status")
    return _version(row)


def _version(row: sqlite3.Row) -> VersionRecord:
    return VersionRecord(row["model"], row["version"], msgspec.msgpack.decode(row["layout"], type=Layout), row["weights"])


def variants(database: sqlite3.Connection, model: str, version: int) -> list[VariantRecord]:
    """All variants of a version, ordered by profile."""
    rows = database.execute(
        "SELECT profile, precision, manifest FROM variants WHERE model=? AND version=? ORDER BY profile", (model, version)
    ).fetchall()
    return [
        VariantRecord(r["profile"], r["precision"], decode(decode(r["manifest"], Signed).payload, Manifest), r["manifest"])
        for r in rows
    ]


def newest_manifests(database: sqlite3.Connection) -> list[VariantRecord]:
    """For every model and profile the newest variant: what is to be announced."""
    rows = database.execute(
        """SELECT profile, precision, manifest, MAX(version) FROM variants GROUP BY model, profile ORDER BY model, profile"""
    ).fetchall()
    return [
        VariantRecord(r["profile"], r["precision"], decode(decode(r["manifest"], Signed).payload, Manifest), r["manifest"])
        for r in rows
    ]


def start_training(database: sqlite3.Connection, version: VersionRecord, plan: Plan, holdout: str, now: float) -> int:
    """Record a new running training and its first round; returns its id.

    It continues where the last training of this version ended: from its weights, with the next round number.

    Raises:
        FleetError: the model is being trained already.
    """
    with database:
        database.execute("BEGIN IMMEDIATE")
        if any(t.model == version.model for t in trainings(database, "running")):
            raise FleetError(
                f"model {version.model!r} is being trained already",
                remedy=f"Wait for it, or stop it: edgefl train stop {version.model}",
            )
        before, weights = newest_weights(database, version)
        cursor = database.execute(
            "INSERT INTO trainings (model, version, plan, holdout, state, first, started) VALUES (?, ?, ?, ?, 'running', ?, ?)",
            (version.model, version.version, msgspec.msgpack.encode(plan), holdout, before + 1, now),
        )
        training = int(cursor.lastrowid or 0)
        database.execute(
            "INSERT INTO rounds (training, round, opened, weights) VALUES (?, ?, ?, ?)", (training, before + 1, now, weights)
        )
    return training


def newest_weights(database: sqlite3.Connection, version: VersionRecord) -> tuple[int, bytes]:
    """The last round of a version (0 before any) and the SHA-256 of its newest parent vector."""
    row = database.execute(
        """SELECT r.round, COALESCE(r.result, r.weights) AS weights FROM rounds r JOIN trainings t ON t.id=r.training
           WHERE t.model=? AND t.version=? ORDER BY r.round DESC LIMIT 1""",
        (version.model, version.version),
    ).fetchone()
    return (row["round"], row["weights"]) if row else (0, version.weights)


def trainings(database: sqlite3.Connection, state: str | None = None) -> list[TrainingRecord]:
    """Trainings in the order they were started, all or those in one state."""
    where, values = ("WHERE state=?", (state,)) if state else ("", ())
    rows = database.execute(f"SELECT * FROM trainings {where} ORDER BY id", values)  # noqa: S608 - a constant clause
    return [_training(row) for row in rows]


def _training(row: sqlite3.Row) -> TrainingRecord:
    plan = msgspec.msgpack.decode(row["plan"], type=Plan)
    return TrainingRecord(row["id"], row["model"], row["version"], plan, row["holdout"], row["state"], row["first"])


def end_training(database: sqlite3.Connection, training: int, state: str) -> None:
    """Mark a training as `stopped` or `finished`."""
    with database:
        database.execute("UPDATE trainings SET state=? WHERE id=? AND state='running'", (state, training))


def store_update(database: sqlite3.Connection, training: int, device: str, head: UpdatePart, data: bytes, now: float) -> bool:
    """Store an update for good; False when it was stored before."""
    with database:
        cursor = database.execute(
            """INSERT OR IGNORE INTO updates (training, device, round, variant, samples, loss, received, sha256, data)
               VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)""",
            (training, device, head.round, head.variant, head.samples, head.loss_after, now, head.sha256, data),
        )
    return cursor.rowcount == 1


def waiting_updates(database: sqlite3.Connection, training: int) -> Iterator[UpdateRecord]:
    """The stored updates of a training that wait for an aggregation, oldest first, one at a time in memory."""
    rows = database.execute(
        """SELECT device, round, variant, samples, data FROM updates WHERE training=? AND counted IS NULL
           ORDER BY received, device""",
        (training,),
    )
    return (UpdateRecord(r["device"], r["round"], r["variant"], r["samples"], r["data"]) for r in rows)


def counted_updates(database: sqlite3.Connection, training: int, since: int) -> list[tuple[str, int]]:
    """Device and round of every update that was aggregated and trained for round `since` or later."""
    rows = database.execute(
        "SELECT device, round FROM updates WHERE training=? AND round>=? AND counted IS NOT NULL", (training, since)
    )
    return [(r["device"], r["round"]) for r in rows]


def is_stored(database: sqlite3.Connection, device: str, head: UpdatePart) -> bool:
    """Whether this very update has been stored in whatever training of its version, running or not."""
    row = database.execute(
        """SELECT 1 FROM updates u JOIN trainings t ON t.id=u.training
           WHERE t.model=? AND t.version=? AND u.device=? AND u.round=? AND u.sha256=?""",
        (head.model, head.version, device, head.round, head.sha256),
    ).fetchone()
    return row is not None


def rounds(database: sqlite3.Connection, training: int) -> list[RoundRecord]:
    """The rounds of a training with the number of updates that were counted in each."""
    rows = database.execute(
        """SELECT r.*, (SELECT COUNT(*) FROM updates u WHERE u.training=r.training AND u.counted=r.round) AS updates
           FROM rounds r WHERE training=? ORDER BY round""",
        (training,),
    )
    names = RoundRecord.__dataclass_fields__
    return [RoundRecord(**{name: row[name] for name in names}) for row in rows]


def close_round(
    database: sqlite3.Connection,
    training: int,
    number: int,
    *,
    counted: Sequence[tuple[str, int]],
    result: bytes,
    accuracy: float | None,
    loss: float | None,
    now: float,
    last: bool,
) -> None:
    """Close a round: its updates count, its result and quality are kept, and the next round opens unless it was the last."""
    with database:
        database.execute(
            "UPDATE rounds SET closed=?, result=?, accuracy=?, loss=? WHERE training=? AND round=?",
            (now, result, accuracy, loss, training, number),
        )
        database.executemany(
            "UPDATE updates SET counted=? WHERE training=? AND device=? AND round=? AND counted IS NULL",
            [(number, training, device, trained_for) for device, trained_for in counted],
        )
        if last:
            database.execute("UPDATE trainings SET state='finished' WHERE id=?", (training,))
        else:
            database.execute(
                "INSERT INTO rounds (training, round, opened, weights) VALUES (?, ?, ?, ?)", (training, number + 1, now, result)
            )


def add_traffic(database: sqlite3.Connection, training: int, number: int, uplink: int, downlink: int) -> None:
    """Add payload bytes to a round."""
    with database:
        database.execute(
            "UPDATE rounds SET uplink=uplink+?, downlink=downlink+? WHERE training=? AND round=?",
            (uplink, downlink, training, number),
        )


def add_counter(database: sqlite3.Connection, name: str, amount: int = 1) -> None:
    """Add to a named counter (refused messages, bytes outside of trainings)."""
    with database:
        database.execute(
            "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value=value+excluded.value", (name, amount)
        )


def counters(database: sqlite3.Connection) -> dict[str, int]:
    """All counters by name."""
    return {row["name"]: row["value"] for row in database.execute("SELECT name, value FROM counters ORDER BY name")}
