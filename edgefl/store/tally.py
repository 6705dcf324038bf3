"""Numbers that only grow: payload bytes of a round, and named counters of the fleet. Written in the transaction that is open."""

import sqlite3


def add_traffic(database: sqlite3.Connection, training: int, number: int, uplink: int, downlink: int) -> None:
    """Add payload bytes to a round."""
    database.execute(
        "UPDATE rounds SET uplink=uplink+?, downlink=downlink+? WHERE training=? AND round=?",
        (uplink, downlink, training, number),
    )


def add_counter(database: sqlite3.Connection, name: str, amount: int) -> None:
    """Add to a named counter (refused messages, bytes outside of trainings)."""
    database.execute(
        "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value=value+excluded.value", (name, amount)
    )


def counters(database: sqlite3.Connection) -> dict[str, int]:
    """All counters by name."""
    return {row["name"]: row["value"] for row in database.execute("SELECT name, value FROM counters ORDER BY name")}
