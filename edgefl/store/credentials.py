"""The fleet's credentials: open claims, and every certificate that was given out.

Model: a *claim* lets one board, once, ask for its first certificate; it is bound to a device and a profile, expires, and is kept
as the hash of its token. A *certificate* is

    pending    signed, and not yet seen in use
    active     the one that the device uses
    replaced   a newer one has been seen, or was asked for, after it
    revoked    taken back

Rule: a claim is used up and its certificate is entered in the caller's one transaction, or neither is.
"""

import hashlib
import sqlite3

import msgspec

from edgefl.store.audit import record


class Claim(msgspec.Struct, frozen=True):
    """A row of `claims`; times in seconds since 1970, `token` is the SHA-256 of the secret, `used` None while it is open."""

    device: str
    profile: str
    token: bytes
    created: float
    expires: float
    used: float | None = None


class Certificate(msgspec.Struct, frozen=True):
    """A row of `certificates`; times in seconds since 1970.

    Attributes:
        serial: hexadecimal.
        device: whose it is.
        issued, expires: the latter as in the certificate.
        state: see the module's model.
        changed: when the state last changed.
        request: SHA-256 of the signing request, empty for a key that the server made.
        pem: the chain, to be sent again; empty for such a key.
    """

    serial: str
    device: str
    issued: float
    expires: float
    state: str
    changed: float
    request: bytes = b""
    pem: bytes = b""


def digest(secret: bytes) -> bytes:
    """What is kept of a token. A plain hash is enough: nobody can guess 128 random bits, however fast the hash."""
    return hashlib.sha256(secret).digest()


def open_claim(database: sqlite3.Connection, claim: Claim) -> None:
    """Enter a claim, in the transaction that is open; an earlier one of the device is void from now on. Raises StoreError."""
    database.execute("REPLACE INTO claims VALUES (?, ?, ?, ?, ?, ?)", msgspec.structs.astuple(claim))


def find_claim(database: sqlite3.Connection, device: str) -> Claim | None:
    """The device's newest claim, open or not. Raises StoreError."""
    row = database.execute("SELECT * FROM claims WHERE device = ?", (device,)).fetchone()
    return Claim(**row) if row else None


def use_claim(database: sqlite3.Connection, claim: Claim, now: float) -> bool:
    """Use the claim up, in the transaction that is open; False if somebody else has, or it was replaced. Raises StoreError."""
    done = database.execute(
        "UPDATE claims SET used = ? WHERE device = ? AND token = ? AND used IS NULL", (now, claim.device, claim.token)
    )
    return done.rowcount == 1


def claims_since(database: sqlite3.Connection, now: float, grace: float) -> int:
    """How many claims are open, or were used so lately that their reply may still be asked for again. Raises StoreError."""
    query = "SELECT COUNT(*) FROM claims WHERE (used IS NULL AND expires > ?) OR used > ?"
    return int(database.execute(query, (now, now - grace)).fetchone()[0])


def add_certificate(database: sqlite3.Connection, certificate: Certificate, how: str) -> None:
    """Enter a certificate, also into the audit log, in the transaction that is open; `how` says why. Raises StoreError."""
    columns = "serial, device, issued, expires, state, changed, request, pem"
    values = msgspec.structs.astuple(certificate)
    database.execute(f"INSERT INTO certificates ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)  # noqa: S608 - no input in it
    record(database, certificate.issued, "certificate-issued", certificate.device, f"{how}, serial {certificate.serial}")


def certificates_of(database: sqlite3.Connection, device: str) -> list[Certificate]:
    """Every certificate that the device was given, oldest first. Raises StoreError."""
    rows = database.execute("SELECT * FROM certificates WHERE device = ? ORDER BY issued, rowid", (device,))
    return [Certificate(**row) for row in rows]


def set_state(database: sqlite3.Connection, certificate: Certificate, state: str, now: float) -> None:
    """Change a certificate's state and write that into the audit log, in the transaction that is open. Raises StoreError."""
    database.execute("UPDATE certificates SET state = ?, changed = ? WHERE serial = ?", (state, now, certificate.serial))
    record(database, now, f"certificate-{state}", certificate.device, f"serial {certificate.serial}")


def current_serial(database: sqlite3.Connection, device: str, serial: str) -> None:
    """Let the registry name this certificate as the device's, in the transaction that is open. Raises StoreError."""
    database.execute("UPDATE devices SET certificate = ? WHERE id = ?", (serial, device))


def ask_rotation(database: sqlite3.Connection, device: str, now: float) -> None:
    """Note that the device is to change its certificate, in the transaction that is open. Raises StoreError."""
    database.execute("REPLACE INTO rotations VALUES (?, ?)", (device, now))
    record(database, now, "rotation-asked", device)


def rotations(database: sqlite3.Connection) -> dict[str, float]:
    """The devices that are to change their certificate, and since when that is wanted. Raises StoreError."""
    return {row["device"]: row["asked"] for row in database.execute("SELECT * FROM rotations")}


def end_rotation(database: sqlite3.Connection, device: str) -> None:
    """The device has changed it. Raises StoreError."""
    database.execute("DELETE FROM rotations WHERE device = ?", (device,))


def ending_certificates(database: sqlite3.Connection, before: float, most: int) -> list[tuple[str, float]]:
    """Valid devices whose certificate ends before a time (seconds since 1970), and when; the first `most`. Raises StoreError."""
    rows = database.execute(
        """SELECT c.device, MAX(c.expires) AS ends FROM certificates c JOIN devices d ON d.id = c.device
           WHERE d.revoked IS NULL AND c.state IN ('active', 'pending')
           GROUP BY c.device HAVING ends < ? ORDER BY ends, c.device LIMIT ?""",
        (before, most),
    )
    return [(row["device"], row["ends"]) for row in rows]
