"""Which weights the devices of recent rounds train from: rows of the fleet's database that name files of the blob store.

Why: an update can be coded with what both ends know of the weights, and is read with the very same bytes, perhaps rounds later
and after a restart. What devices were offered is therefore written down, before they are, and kept as long as an update may refer
to it.
"""

import sqlite3
from collections.abc import Mapping

from edgefl.store.database import transaction


def record_offers(
    database: sqlite3.Connection, model: str, version: int, number: int, weights: Mapping[str, bytes], *, since: int
) -> None:
    """Write down what a round offers; what rounds before `since` have offered is forgotten.

    Args:
        database: the fleet's.
        model: name.
        version: of the model.
        number: of the round.
        weights: SHA-256 of the weights file, by variant.
        since: number of the oldest round to keep.

    Raises:
        StoreError: it cannot be written now; nothing has changed.
    """
    with transaction(database):
        database.execute("DELETE FROM offers WHERE model=? AND version=? AND round<?", (model, version, since))
        database.executemany(
            "INSERT OR REPLACE INTO offers (model, version, round, variant, weights) VALUES (?, ?, ?, ?, ?)",
            [(model, version, number, variant, sha256) for variant, sha256 in weights.items()],
        )


def offered(database: sqlite3.Connection, model: str, version: int, number: int, variant: str) -> bytes | None:
    """SHA-256 of the weights file that a variant's devices were offered in a round; None if it has been forgotten."""
    row = database.execute(
        "SELECT weights FROM offers WHERE model=? AND version=? AND round=? AND variant=?", (model, version, number, variant)
    ).fetchone()
    return bytes(row["weights"]) if row else None


def recent_offers(database: sqlite3.Connection, model: str, version: int, count: int) -> dict[str, list[bytes]]:
    """SHA-256 of the weights files that devices of the last `count` rounds were offered, by variant, the newest first."""
    rows = database.execute(
        """SELECT variant, weights FROM offers WHERE model=?1 AND version=?2 AND round>
           (SELECT MAX(round) FROM offers WHERE model=?1 AND version=?2) - ?3 ORDER BY round DESC""",
        (model, version, count),
    )
    found: dict[str, list[bytes]] = {}
    for row in rows:
        found.setdefault(row["variant"], []).append(bytes(row["weights"]))
    return found


def offered_blobs(database: sqlite3.Connection, model: str, version: int) -> frozenset[bytes]:
    """Every weights file that an update for this version may still refer to."""
    rows = database.execute("SELECT DISTINCT weights FROM offers WHERE model=? AND version=?", (model, version))
    return frozenset(bytes(row["weights"]) for row in rows)
