"""Which devices are revoked, and every certificate that must therefore open nothing.

Model: the registry is the truth; the list that the broker reads (`edgefl.identity.crl`) and the deny lines of its access file are
made from it, as often as anybody likes. A revoked device stays in the registry, so that its id is never given again.

Rule: revocation reaches everything that could bring the device back: its certificates, those that replaced them, and an open
claim with which it could ask for another.
"""

import sqlite3

from edgefl.store.audit import record
from edgefl.store.database import transaction
from edgefl.store.registry import get_device


def revoke(database: sqlite3.Connection, device: str, reason: str, now: float) -> bool:
    """Revoke a device, in one transaction; False when it was revoked before, and nothing has changed but open claims.

    Args:
        database: the fleet's.
        device: its id.
        reason: for the audit; may be empty.
        now: seconds since 1970.

    Raises:
        FleetError: the fleet has no such device.
        StoreError: the database cannot be written now.
    """
    with transaction(database):
        first = get_device(database, device).revoked is None
        if first:
            database.execute("UPDATE devices SET revoked = ? WHERE id = ?", (now, device))
            record(database, now, "revoked", device, reason)
        database.execute(
            "UPDATE certificates SET state = 'revoked', changed = ? WHERE device = ? AND state <> 'revoked'", (now, device)
        )
        database.execute("UPDATE presence SET online = 0 WHERE device = ?", (device,))  # its will may never be sent
        database.execute("UPDATE claims SET used = ? WHERE device = ? AND used IS NULL", (now, device))
    return first


def revoked_devices(database: sqlite3.Connection) -> tuple[str, ...]:
    """Ids of all revoked devices, sorted. Raises StoreError."""
    return tuple(row["id"] for row in database.execute("SELECT id FROM devices WHERE revoked IS NOT NULL ORDER BY id"))


def revoked_serials(database: sqlite3.Connection) -> dict[int, float]:
    """Serial numbers that open nothing any more, and since when (seconds since 1970). Raises StoreError."""
    rows = database.execute(
        """SELECT certificate AS serial, revoked AS since FROM devices WHERE revoked IS NOT NULL AND certificate <> ''
           UNION ALL SELECT serial, changed FROM certificates WHERE state = 'revoked'
           UNION ALL SELECT c.serial, d.revoked FROM certificates c JOIN devices d ON d.id = c.device
           WHERE d.revoked IS NOT NULL"""
    )
    found: dict[int, float] = {}
    for row in rows:
        serial = int(row["serial"], 16)
        found[serial] = min(row["since"], found.get(serial, row["since"]))
    return found
