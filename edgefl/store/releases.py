"""Which version of each model the fleet is to hold, and what each device was last told.

Model: a model has one *release*: the version that every device holds of which no rollout says otherwise. A push makes its version
the release at once, unless it is held back for a rollout; a rollout makes its version the release when it has finished; a
rollback makes an earlier version the release again.
"""

import sqlite3

import msgspec

from edgefl.wire.messages import Assigned


def release(database: sqlite3.Connection, model: str, version: int, now: float) -> None:
    """Make a version the release of its model, in the transaction that is open; `now` in seconds since 1970."""
    database.execute(
        """INSERT INTO releases (model, version, since) VALUES (?, ?, ?)
           ON CONFLICT (model) DO UPDATE SET version=excluded.version, since=excluded.since""",
        (model, version, now),
    )


def releases(database: sqlite3.Connection) -> dict[str, int]:
    """The release of every model that has one."""
    return {row["model"]: row["version"] for row in database.execute("SELECT model, version FROM releases ORDER BY model")}


def assign(database: sqlite3.Connection, device: str, models: tuple[Assigned, ...]) -> int:
    """Write down what a device is to hold, in the transaction that is open.

    Returns:
        The counter of the device's assignment, which has risen if and only if this is news.
    """
    row = database.execute("SELECT counter, models FROM assignments WHERE device=?", (device,)).fetchone()
    encoded = msgspec.msgpack.encode(models)
    if row is not None and row["models"] == encoded:
        return int(row["counter"])
    counter = int(row["counter"]) + 1 if row is not None else 1
    database.execute(
        """INSERT INTO assignments (device, counter, models) VALUES (?, ?, ?)
           ON CONFLICT (device) DO UPDATE SET counter=excluded.counter, models=excluded.models""",
        (device, counter, encoded),
    )
    return counter
