"""Which version of each model the fleet is to hold, and what each device was last told.

Model: a model has one *release*: the version that every device holds of which no rollout says otherwise. A push makes its version
the release at once, unless it is held back for a rollout; a rollout makes its version the release when it has finished; a
rollback makes an earlier version the release again. What was said last counts: a new release ends what rollouts of the model
said.
"""

import sqlite3

import msgspec

from edgefl.server.rollout_state import OPEN
from edgefl.store.rollouts import drop_kept
from edgefl.wire.releases import Assigned


def release(database: sqlite3.Connection, model: str, version: int, now: float) -> None:
    """Make a version the release of its model, in the transaction that is open; `now` in seconds since 1970."""
    if previous_releases(database, model)[:1] != (version,):
        database.execute("INSERT INTO released (model, version, since) VALUES (?, ?, ?)", (model, version, now))
    _set(database, model, version, now)
    database.execute(
        f"""UPDATE rollouts SET state='superseded', reason=?, changed=?
            WHERE model=? AND state IN ({", ".join("?" * len(OPEN))})""",  # noqa: S608 - question marks
        (f"{model}@{version} became the release", now, model, *OPEN),
    )
    drop_kept(database, model)


def go_back(database: sqlite3.Connection, model: str, version: int, now: float) -> None:
    """Make a version the release again and forget those that were after it, in the transaction that is open."""
    row = database.execute("SELECT MAX(id) AS id FROM released WHERE model=? AND version=?", (model, version)).fetchone()
    if row["id"] is None:
        release(database, model, version, now)
        return
    database.execute("DELETE FROM released WHERE model=? AND id>?", (model, row["id"]))
    _set(database, model, version, now)
    drop_kept(database, model)


def _set(database: sqlite3.Connection, model: str, version: int, now: float) -> None:
    database.execute(
        """INSERT INTO releases (model, version, since) VALUES (?, ?, ?)
           ON CONFLICT (model) DO UPDATE SET version=excluded.version, since=excluded.since""",
        (model, version, now),
    )


def previous_releases(database: sqlite3.Connection, model: str) -> tuple[int, ...]:
    """What has been the release of a model, the newest first, without those that were rolled back."""
    rows = database.execute("SELECT version FROM released WHERE model=? ORDER BY id DESC", (model,))
    return tuple(version for (version,) in rows)


def all_released(database: sqlite3.Connection) -> frozenset[tuple[str, int]]:
    """Every model and version that has been a release and was not rolled back."""
    return frozenset((row["model"], row["version"]) for row in database.execute("SELECT model, version FROM released"))


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
