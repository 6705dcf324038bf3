"""What the server must never forget about trainings and rounds: rows of the fleet's database.

Model: a version is trained by one training at a time; rounds count on over the trainings of a version. A training is *running*,
and ends once: *finished* (all rounds done), *stopped* (by the operator) or *superseded* (no profile is announced its version any
more). Versions are in `store.versions`, updates in `store.updates`.

Rules: closing a round, marking its updates as counted and opening the next one is a single transaction, and happens only while
the training runs. Whoever reads the ledger after a crash sees the moment before it or the moment after it, never between.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from edgefl.errors import FleetError
from edgefl.plan import Plan
from edgefl.store.database import transaction
from edgefl.store.standings import record_scores
from edgefl.store.updates import take_over_waiting
from edgefl.store.versions import VersionRecord


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """A training and how the operator wanted it; `state` is running, finished, stopped or superseded."""

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
    """One round of a training; `result`, `accuracy`, `loss` and `pruned` are None until it is closed and evaluated.

    `held` and `held_after` are the vectors that devices hold where they are not the parents `weights` and `result` themselves;
    `optimizer` is the state of the server's optimiser that it begins with. `pruned` is the part of the prunable weights that is
    gone from the result; None too for a round that was closed before it was written down.
    """

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
    held: bytes | None = None
    held_after: bytes | None = None
    optimizer: bytes | None = None
    pruned: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round has come to.

    Attributes:
        counted: device and round trained for, of each update in the result.
        result: SHA-256 of the new parent vector, which is in the blob store.
        accuracy, loss: of the result on the hold-out set, None if they were not measured.
        held: SHA-256 of the vector that devices are to hold, if it is not the result.
        optimizer: SHA-256 of the server optimiser's state after it, if it has one.
        scores: of the round's devices, in [0, 1].
        exclude: standing at which a device is excluded.
        attackers: fraction of the devices that may be excluded so.
        pruned: part of the prunable weights that is gone from the result, in [0, 1].
    """

    counted: Sequence[tuple[str, int]]
    result: bytes
    accuracy: float | None = None
    loss: float | None = None
    held: bytes | None = None
    optimizer: bytes | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    exclude: float = 0.0
    attackers: float = 0.0
    pruned: float = 0.0


def start_training(database: sqlite3.Connection, version: VersionRecord, plan: Plan, holdout: str, now: float) -> int:
    """Record a new running training and its first round; returns its id.

    It continues where the last training of this version ended: from its weights, with the next round number, and with the
    updates that were stored in a round that was stopped, so far as they are not too late for this plan. With a jump-start it
    takes over none; what was trained for a race, or before one, nobody takes over (`edgefl.server.rounds`).

    Raises:
        FleetError: the model is being trained already.
    """
    with transaction(database):
        if is_trained(database, version.model):
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
        if plan.jump_start is None:
            since = max(before + 1 - plan.staleness, newest_race(database, version.model, version.version) + 1)
            take_over_waiting(database, training, version.model, version.version, since)
        held = newest_held(database, version) if plan.downlink_sparsity < 1.0 else None
        _open_round(database, training, before + 1, (weights, held, None), now)
    return training


def is_trained(database: sqlite3.Connection, model: str) -> bool:
    """Whether a training of the model is running."""
    return any(training.model == model for training in trainings(database, "running"))


def _open_round(
    database: sqlite3.Connection, training: int, number: int, begins: tuple[bytes, bytes | None, bytes | None], now: float
) -> None:
    database.execute(
        "INSERT INTO rounds (training, round, opened, weights, held, optimizer) VALUES (?, ?, ?, ?, ?, ?)",
        (training, number, now, *begins),
    )


def newest_weights(database: sqlite3.Connection, version: VersionRecord) -> tuple[int, bytes]:
    """The last round of a version (0 before any) and the SHA-256 of its newest parent vector."""
    row = database.execute(
        """SELECT r.round, COALESCE(r.result, r.weights) AS weights FROM rounds r JOIN trainings t ON t.id=r.training
           WHERE t.model=? AND t.version=? ORDER BY r.round DESC LIMIT 1""",
        (version.model, version.version),
    ).fetchone()
    return (row["round"], row["weights"]) if row else (0, version.weights)


def last_closed(database: sqlite3.Connection, version: VersionRecord) -> int:
    """The last round of a version that has a result; 0 before any has."""
    row = database.execute(
        """SELECT MAX(r.round) AS round FROM rounds r JOIN trainings t ON t.id=r.training
           WHERE t.model=? AND t.version=? AND r.result IS NOT NULL""",
        (version.model, version.version),
    ).fetchone()
    return row["round"] or 0


def newest_race(database: sqlite3.Connection, model: str, version: int) -> int:
    """The number of the last round of a version that is or was a jump-start; 0 if there is none."""
    own = (training for training in trainings(database) if (training.model, training.version) == (model, version))
    return max((training.first for training in own if training.plan.jump_start), default=0)


def newest_held(database: sqlite3.Connection, version: VersionRecord) -> bytes | None:
    """SHA-256 of the vector that devices hold after the last round of a version; None if that is the newest parent."""
    row = database.execute(
        """SELECT CASE WHEN r.result IS NULL THEN r.held ELSE r.held_after END AS held
           FROM rounds r JOIN trainings t ON t.id=r.training WHERE t.model=? AND t.version=? ORDER BY r.round DESC LIMIT 1""",
        (version.model, version.version),
    ).fetchone()
    return row["held"] if row else None


def trainings(database: sqlite3.Connection, state: str | None = None) -> list[TrainingRecord]:
    """Trainings in the order they were started, all or those in one state."""
    where, values = ("WHERE state=?", (state,)) if state else ("", ())
    rows = database.execute(f"SELECT * FROM trainings {where} ORDER BY id", values)  # noqa: S608 - a constant clause
    return [_training(row) for row in rows]


def newest_training(database: sqlite3.Connection, model: str) -> TrainingRecord:
    """The training of a model that was started last.

    Raises:
        FleetError: it has never been trained.
    """
    row = database.execute("SELECT * FROM trainings WHERE model=? ORDER BY id DESC LIMIT 1", (model,)).fetchone()
    if row is None:
        raise FleetError(f"model {model!r} has never been trained", remedy=f"Start it: edgefl train start {model}")
    return _training(row)


def _training(row: sqlite3.Row) -> TrainingRecord:
    plan = msgspec.msgpack.decode(row["plan"], type=Plan)
    return TrainingRecord(row["id"], row["model"], row["version"], plan, row["holdout"], row["state"], row["first"])


def is_running(database: sqlite3.Connection, training: int) -> bool:
    """Whether a training has not ended."""
    row = database.execute("SELECT 1 FROM trainings WHERE id=? AND state='running'", (training,)).fetchone()
    return row is not None


def end_training(database: sqlite3.Connection, training: int, state: Literal["stopped", "superseded"]) -> None:
    """End a training before its last round; one that has ended already stays as it is."""
    with transaction(database):
        database.execute("UPDATE trainings SET state=? WHERE id=? AND state='running'", (state, training))


def rounds(database: sqlite3.Connection, training: int, since: int = 0) -> list[RoundRecord]:
    """The rounds of a training, from number `since` on, with the number of updates that were counted in each."""
    rows = database.execute(
        """SELECT r.*, (SELECT COUNT(*) FROM updates u WHERE u.training=r.training AND u.counted=r.round) AS updates
           FROM rounds r WHERE training=? AND round>=? ORDER BY round""",
        (training, since),
    )
    names = RoundRecord.__dataclass_fields__
    return [RoundRecord(**{name: row[name] for name in names}) for row in rows]


def newest_round(database: sqlite3.Connection, training: int) -> RoundRecord:
    """The open round of a training, or its last one."""
    (number,) = database.execute("SELECT MAX(round) FROM rounds WHERE training=?", (training,)).fetchone()
    return rounds(database, training, number)[-1]


def close_round(database: sqlite3.Connection, training: int, number: int, outcome: Outcome, now: float, *, last: bool) -> bool:
    """Close a round: its updates count and lose their content, its outcome is kept, and the next one opens unless it was `last`.

    Returns:
        False, and nothing changed, when the training no longer runs.

    Raises:
        StoreError: it cannot be written now; nothing changed.
    """
    with transaction(database):
        if not is_running(database, training):
            return False
        database.execute(
            "UPDATE rounds SET closed=?, result=?, accuracy=?, loss=?, held_after=?, pruned=? WHERE training=? AND round=?",
            (now, outcome.result, outcome.accuracy, outcome.loss, outcome.held, outcome.pruned, training, number),
        )
        database.executemany(
            "UPDATE updates SET counted=?, data=x'' WHERE training=? AND device=? AND round=? AND counted IS NULL",
            [(number, training, device, trained_for) for device, trained_for in outcome.counted],
        )
        record_scores(database, outcome.scores, outcome.exclude, now, attackers=outcome.attackers)
        if last:
            database.execute("UPDATE trainings SET state='finished' WHERE id=?", (training,))
        else:
            _open_round(database, training, number + 1, (outcome.result, outcome.held, outcome.optimizer), now)
    return True
