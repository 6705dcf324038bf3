"""The updates that the server has promised to count: rows of the fleet's database.

Rules: an update is known by (version, device, round it trained for), over all trainings of a version, because rounds count on
from one to the next. It is stored at most once, and only while its training runs. When it has been aggregated its row stays, so
that a repetition is recognised, but its content goes: nobody needs a device's delta any longer than that.
"""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from edgefl.store.database import transaction
from edgefl.wire.rounds import UpdatePart


@dataclass(frozen=True, slots=True)
class UpdateRecord:
    """A stored update that waits for its aggregation.

    Attributes:
        round: that the device trained for.
        before: the earlier round whose weights it was coded with, as in the wire's `UpdatePart`.
        loss_after: likewise.
    """

    device: str
    round: int
    variant: str
    samples: int
    data: bytes
    before: int
    loss_after: float


def store_update(database: sqlite3.Connection, training: int, device: str, head: UpdatePart, data: bytes, now: float) -> bool:
    """Store an update for good; False, and nothing stored, when the training no longer runs.

    Args:
        database: the fleet's.
        training: id of the training.
        device: the sender.
        head: any part of the update.
        data: the whole encoded update.
        now: seconds since 1970.

    Raises:
        StoreError: it cannot be written now.
    """
    with transaction(database):
        cursor = database.execute(
            """INSERT INTO updates (training, device, round, variant, samples, loss, received, sha256, before, length, data)
               SELECT id, ?, ?, ?, ?, ?, ?, ?, ?, ?, ? FROM trainings WHERE id=? AND state='running'""",
            (
                device,
                head.round,
                head.variant,
                head.samples,
                head.loss_after,
                now,
                head.sha256,
                head.before,
                len(data),
                data,
                training,
            ),
        )
    return cursor.rowcount == 1


def waiting_updates(database: sqlite3.Connection, training: int) -> Iterator[UpdateRecord]:
    """The updates of a training that wait, in the order in which they were stored, one at a time in memory."""
    rows = database.execute(
        "SELECT * FROM updates WHERE training=? AND counted IS NULL ORDER BY rowid",
        (training,),
    )
    fields = ("device", "round", "variant", "samples", "data", "before", "loss")
    return (UpdateRecord(*(row[name] for name in fields)) for row in rows)


def waiting_losses(database: sqlite3.Connection, training: int) -> list[float]:
    """The training losses that came with the updates of a training that wait."""
    rows = database.execute("SELECT loss FROM updates WHERE training=? AND counted IS NULL", (training,))
    return [row["loss"] for row in rows]


def losses(database: sqlite3.Connection, model: str, version: int, number: int) -> list[float]:
    """The training losses that came with the updates that were counted in a round of a version."""
    rows = database.execute(
        "SELECT loss FROM updates WHERE counted=? AND training IN (SELECT id FROM trainings WHERE model=? AND version=?)",
        (number, model, version),
    )
    return [row["loss"] for row in rows]


def participations(database: sqlite3.Connection, training: int, until: int) -> dict[str, int]:
    """How many updates of each device were counted in a training up to a round; devices without any are left out."""
    rows = database.execute(
        "SELECT device, COUNT(*) AS times FROM updates WHERE training=? AND counted<=? GROUP BY device", (training, until)
    )
    return {row["device"]: row["times"] for row in rows}


def bits_per_parameter(database: sqlite3.Connection, training: int) -> dict[int, float]:
    """Mean bits of an update for each parameter of its variant, by the round that it was counted in."""
    rows = database.execute(
        """SELECT u.counted AS counted, AVG(8.0 * u.length / v.parameters) AS bits FROM updates u
           JOIN trainings t ON t.id=u.training
           JOIN (SELECT model, version, variant, MAX(parameters) AS parameters FROM variants GROUP BY model, version, variant) v
             ON v.model=t.model AND v.version=t.version AND v.variant=u.variant
           WHERE u.training=? AND u.counted IS NOT NULL AND u.length>0 GROUP BY u.counted""",
        (training,),
    )
    return {row["counted"]: row["bits"] for row in rows}


def take_over_waiting(database: sqlite3.Connection, training: int, model: str, version: int, since: int) -> None:
    """Let the updates that earlier trainings of a version left uncounted wait for this one, if they trained for `since` or later.

    In the transaction that is open.
    """
    database.execute(
        """UPDATE updates SET training=? WHERE counted IS NULL AND round>=? AND training IN
           (SELECT id FROM trainings WHERE model=? AND version=?)""",
        (training, since, model, version),
    )


def known_updates(database: sqlite3.Connection, model: str, version: int, since: int) -> set[tuple[str, int]]:
    """Device and round of every stored update of a version, waiting or counted, that trained for round `since` or later."""
    rows = database.execute(
        "SELECT device, round FROM updates WHERE round>=? AND training IN (SELECT id FROM trainings WHERE model=? AND version=?)",
        (since, model, version),
    )
    return {(r["device"], r["round"]) for r in rows}


def is_stored(database: sqlite3.Connection, device: str, head: UpdatePart) -> bool:
    """Whether this very update has been stored in whatever training of its version, running or not."""
    row = database.execute(
        """SELECT 1 FROM updates u JOIN trainings t ON t.id=u.training
           WHERE t.model=? AND t.version=? AND u.device=? AND u.round=? AND u.sha256=?""",
        (head.model, head.version, device, head.round, head.sha256),
    ).fetchone()
    return row is not None
