"""The audit log: every event of a credential, who it concerned and what was said; rows are only ever added.

Events, in the order of a board's life:

    provisioned          a bundle with key and certificate was made
    claim-opened         a board may ask for its first certificate; `again` if it has had one before
    claim-refused        somebody asked and did not get one; the detail begins with the code
    certificate-issued   a certificate was signed
    certificate-active   it was used for the first time
    certificate-replaced a newer one is in use, or was asked for before this one was ever used
    rotation-asked       an operator wants the device to change its certificate now
    revoked              an operator has revoked the device
    revocation: STEP done, or open: what came of it in list, broker and session
    renewal-refused      a device asked for its next certificate and did not get it

The fleet's own broker and server stand here too, as `edgefl-broker` and `edgefl-server`:

    certificate-revoked  the server uses a newer one; what it used before opens nothing any more
    renewal-undone       the server could not connect with its new certificate and went back to the one before
"""

import sqlite3

import msgspec

LONGEST_DETAIL = 300


class AuditEvent(msgspec.Struct, frozen=True):
    """One row; `at` in seconds since 1970."""

    id: int
    at: float
    event: str
    device: str
    detail: str


def record(database: sqlite3.Connection, now: float, event: str, device: str, detail: str = "") -> None:
    """Add an event, in the transaction that is open. Raises StoreError."""
    database.execute(
        "INSERT INTO audit (at, event, device, detail) VALUES (?, ?, ?, ?)", (now, event, device, detail[:LONGEST_DETAIL])
    )


def events(database: sqlite3.Connection, device: str | None = None) -> list[AuditEvent]:
    """All events, or those of one device, oldest first. Raises StoreError."""
    where, values = ("", ()) if device is None else ("WHERE device = ?", (device,))
    return [AuditEvent(**row) for row in database.execute(f"SELECT * FROM audit {where} ORDER BY id", values)]  # noqa: S608 - no input in it
