"""What happened to the fleet's credentials, in order: rows are added and never changed."""

import sqlite3
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One event.

    Attributes:
        at: seconds since 1970.
        event: one word or two, for example `revoked`.
        device: whose credential it was; empty when it concerns the whole fleet.
        detail: what else is to be known, for a person.
    """

    at: float
    event: str
    device: str
    detail: str


def record(database: sqlite3.Connection, now: float, event: str, device: str, detail: str = "") -> None:
    """Add an event, in the transaction that is open. Raises StoreError."""
    database.execute("INSERT INTO audit (at, event, device, detail) VALUES (?, ?, ?, ?)", (now, event, device, detail))


def events(database: sqlite3.Connection, device: str | None = None) -> list[AuditEvent]:
    """All events, or a device's, oldest first. Raises StoreError."""
    where, values = ("", ()) if device is None else ("WHERE device = ?", (device,))
    rows = database.execute(f"SELECT at, event, device, detail FROM audit {where} ORDER BY id", values)  # noqa: S608 - fixed text
    return [AuditEvent(**row) for row in rows]
