"""The fleet's TUF metadata as it is in force: documents by name. What they mean is `edgefl.identity.repository`'s."""

import sqlite3
from collections.abc import Mapping


def documents(database: sqlite3.Connection) -> dict[str, bytes]:
    """All of them: `timestamp`, `snapshot`, `targets`, and `N.root` for every N. Raises StoreError."""
    return {row["name"]: row["data"] for row in database.execute("SELECT name, data FROM documents ORDER BY name")}


def put_documents(database: sqlite3.Connection, changed: Mapping[str, bytes]) -> None:
    """Put documents into force, in the transaction that is open: all that were made together, or none."""
    database.executemany(
        "INSERT INTO documents VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET data=excluded.data", list(changed.items())
    )
