"""How each device stands, and which are excluded: rows of the fleet's database, changed by closing rounds and by operators."""

import sqlite3
from collections.abc import Mapping

import msgspec

from edgefl.aggregate.standing import TRUSTED, after_round, fallen
from edgefl.store.database import transaction


class Standing(msgspec.Struct, frozen=True):
    """How a device stands.

    Attributes:
        device: its id.
        standing: from 1 (trusted) to 0; see `edgefl.aggregate.standing`.
        excluded: seconds since 1970; None while it takes part.
        by: `scores` or `operator`; empty while it takes part.
    """

    device: str
    standing: float = TRUSTED
    excluded: float | None = None
    by: str = ""


def standings(database: sqlite3.Connection) -> dict[str, Standing]:
    """Of every device that has been scored or excluded, by id."""
    rows = database.execute("SELECT device, standing, excluded, by FROM standings ORDER BY device")
    return {row["device"]: Standing(**row) for row in rows}


def excluded(database: sqlite3.Connection, device: str) -> Standing | None:
    """How a device stands if it is excluded."""
    row = database.execute("SELECT device, standing, excluded, by FROM standings WHERE device=?", (device,)).fetchone()
    return Standing(**row) if row is not None and row["excluded"] is not None else None


def record_scores(
    database: sqlite3.Connection, scores: Mapping[str, float], threshold: float, now: float, *, attackers: float
) -> None:
    """Let a round's scores count, in the transaction that is open.

    Args:
        database: the fleet's.
        scores: in [0, 1], by device.
        threshold: the plan's `exclude`; a device that falls to it is excluded.
        now: seconds since 1970.
        attackers: the plan's fraction of hostile devices; scores exclude no more.
    """
    known = standings(database)
    after = after_round({device: known[device].standing for device in scores if device in known}, scores)
    out = {device for device, standing in known.items() if standing.excluded is not None}
    by_scores = [device for device in out if known[device].by == "scores"]
    candidates = {device: standing for device, standing in after.items() if device not in out}
    bad = fallen(candidates, by_scores, threshold, attackers=attackers, devices=len(known.keys() | scores.keys()))
    for device, standing in after.items():
        database.execute(
            """INSERT INTO standings (device, standing, excluded, by) VALUES (?, ?, ?, ?) ON CONFLICT (device) DO UPDATE
               SET standing=excluded.standing, excluded=COALESCE(standings.excluded, excluded.excluded),
                   by=CASE WHEN standings.excluded IS NULL THEN excluded.by ELSE standings.by END""",
            (device, standing, now if device in bad else None, "scores" if device in bad else ""),
        )


def exclude(database: sqlite3.Connection, device: str, now: float) -> None:
    """Take nothing more from a device, on an operator's word. Raises StoreError when it cannot be written."""
    with transaction(database):
        database.execute(
            """INSERT INTO standings (device, standing, excluded, by) VALUES (?, ?, ?, 'operator') ON CONFLICT (device) DO UPDATE
               SET excluded=excluded.excluded, by='operator'""",
            (device, TRUSTED, now),
        )


def reinstate(database: sqlite3.Connection, device: str) -> None:
    """Let a device take part again, as if nothing had been. Raises StoreError when it cannot be written."""
    with transaction(database):
        database.execute("DELETE FROM standings WHERE device=?", (device,))
