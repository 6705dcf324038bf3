"""Tags: words that an operator puts on devices, to name groups of them."""

import sqlite3
from collections.abc import Iterable

from edgefl.names import check_id


def tag(database: sqlite3.Connection, device: str, tags: Iterable[str]) -> None:
    """Put tags on a device, in the transaction that is open; those that it has already stay.

    Raises:
        InputError: one of them cannot be a tag; it is as short and plain as a device's id.
    """
    rows = [(device, check_id(one, "tag")) for one in tags]
    database.executemany("INSERT OR IGNORE INTO tags (device, tag) VALUES (?, ?)", rows)


def untag(database: sqlite3.Connection, device: str, tags: Iterable[str]) -> None:
    """Take tags off a device, in the transaction that is open; those that it does not have are no error."""
    database.executemany("DELETE FROM tags WHERE device=? AND tag=?", [(device, one) for one in tags])


def all_tags(database: sqlite3.Connection) -> dict[str, tuple[str, ...]]:
    """The tags of every device that has any, in order."""
    found: dict[str, tuple[str, ...]] = {}
    for row in database.execute("SELECT device, tag FROM tags ORDER BY device, tag"):
        found[row["device"]] = (*found.get(row["device"], ()), row["tag"])
    return found
