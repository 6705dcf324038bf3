"""Entering devices: the rows that make a bundle count, in the registry, among the credentials and in the audit log."""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgefl.device.identity import ClaimFile
from edgefl.errors import FleetError
from edgefl.identity.authority import LEAF_DAYS
from edgefl.store.audit import record
from edgefl.store.credentials import Certificate, Claim, add_certificate, digest, open_claim
from edgefl.store.registry import Device, add_devices, get_device


@dataclass(frozen=True, slots=True)
class Order:
    """A device to be made.

    Attributes:
        id: its id.
        profile: name of a shipped profile or one of the fleet's own.
        data: what `device.toml` names as source of examples.
        tags: that it will have.
    """

    id: str
    profile: str
    data: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Provisioned:
    """A device that exists now, where its bundle is, and its claim if it has to make one; the token is nowhere else to be had."""

    device: Device
    bundle: Path
    claim: ClaimFile | None = None


def enrol(database: sqlite3.Connection, made: Sequence[Provisioned], tags: Mapping[str, tuple[str, ...]], *, again: bool) -> None:
    """Enter new devices, or with `again` new claims of old ones, in the caller's transaction.

    Raises:
        FleetError: a device exists already; with `again`: does not exist, was revoked, or has another profile.
    """
    if not again:
        add_devices(database, [one.device for one in made])
    for device, claim in ((one.device, one.claim) for one in made):
        known = get_device(database, device.id)
        if known.revoked is not None:
            raise FleetError(f"device {device.id!r} was revoked", remedy="Provision the board under another id")
        if known.profile != device.profile:
            raise FleetError(f"device {device.id!r} has another profile", expected=known.profile, found=device.profile)
        database.executemany("INSERT OR IGNORE INTO tags VALUES (?, ?)", [(device.id, tag) for tag in tags[device.id]])
        if claim is None:
            record(database, device.created, "provisioned", device.id, f"profile {device.profile}")
            ends = device.created + LEAF_DAYS * 86400.0
            row = Certificate(device.certificate, device.id, device.created, ends, "active", device.created)
            add_certificate(database, row, "bundle")
        else:
            opened = Claim(device.id, device.profile, digest(claim.token.encode()), device.created, float(claim.expires))
            open_claim(database, opened)
            hours = (claim.expires - device.created) / 3600.0
            record(database, device.created, "claim-opened", device.id, f"for {hours:.1f} h" + (", again" if again else ""))
