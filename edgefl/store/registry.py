"""The devices of a fleet: who they are and which certificate they were given. What they last said is in `presence`."""

import sqlite3

import msgspec

from edgefl.errors import FleetError


class Device(msgspec.Struct, frozen=True):
    """A provisioned device.

    Attributes:
        id: its name on the broker and in its certificate.
        profile: what it can hold.
        certificate: serial number, hexadecimal.
        created: seconds since 1970.
        revoked: seconds since 1970, or None while it is valid.
    """

    id: str
    profile: str
    certificate: str
    created: float
    revoked: float | None = None


def add_devices(database: sqlite3.Connection, devices: list[Device]) -> None:
    """Enter devices, in the transaction that is open (`with database:`), so that the caller decides when they count.

    Raises:
        FleetError: one of them exists already; its id is never given twice, not even after revocation.
    """
    for device in devices:
        try:
            database.execute("INSERT INTO devices VALUES (?, ?, ?, ?, ?)", msgspec.structs.astuple(device))
        except sqlite3.IntegrityError:
            raise FleetError(
                f"device {device.id!r} already exists in this fleet", remedy="Choose another id, or see `edgefl devices ls`"
            ) from None


def list_devices(database: sqlite3.Connection) -> list[Device]:
    """All devices, by id."""
    return [Device(**row) for row in database.execute("SELECT * FROM devices ORDER BY id")]


def get_device(database: sqlite3.Connection, device: str) -> Device:
    """One device.

    Raises:
        FleetError: the fleet has no such device.
    """
    row = database.execute("SELECT * FROM devices WHERE id = ?", (device,)).fetchone()
    if row is None:
        raise FleetError(f"the fleet has no device {device!r}", remedy="See `edgefl devices ls`")
    return Device(**row)
