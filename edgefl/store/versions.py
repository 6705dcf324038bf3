"""What has been pushed: versions of models and their variants, as rows of the fleet's database. They are written by a push."""

import sqlite3
from dataclasses import dataclass

import msgspec

from edgefl.errors import FleetError
from edgefl.layout import Layout
from edgefl.wire.messages import Manifest, Signed, decode


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One push of a model: the parent's layout and the SHA-256 of its float32 vector."""

    model: str
    version: int
    layout: Layout
    weights: bytes


@dataclass(frozen=True, slots=True)
class VariantRecord:
    """A variant of a version as made for one profile; `signed` is the manifest as it is announced."""

    profile: str
    precision: str
    manifest: Manifest
    signed: bytes


def latest_version(database: sqlite3.Connection, model: str) -> VersionRecord:
    """The newest version of a model.

    Raises:
        FleetError: it has never been pushed.
    """
    row = database.execute("SELECT * FROM versions WHERE model=? ORDER BY version DESC LIMIT 1", (model,)).fetchone()
    if row is None:
        raise FleetError(f"the fleet has no model {model!r}", remedy=f"Push it first: edgefl push {model}")
    return _version(row)


def get_version(database: sqlite3.Connection, model: str, version: int) -> VersionRecord:
    """One version of a model.

    Raises:
        FleetError: there is no such version.
    """
    row = database.execute("SELECT * FROM versions WHERE model=? AND version=?", (model, version)).fetchone()
    if row is None:
        raise FleetError(f"the fleet has no version {model}@{version}", remedy="List what there is: edgefl status")
    return _version(row)


def _version(row: sqlite3.Row) -> VersionRecord:
    return VersionRecord(row["model"], row["version"], msgspec.msgpack.decode(row["layout"], type=Layout), row["weights"])


def variants(database: sqlite3.Connection, model: str, version: int) -> list[VariantRecord]:
    """All variants of a version, ordered by profile."""
    rows = database.execute(
        "SELECT profile, precision, manifest FROM variants WHERE model=? AND version=? ORDER BY profile", (model, version)
    )
    return [_variant(row) for row in rows]


def earlier_variants(database: sqlite3.Connection, model: str, profile: str, count: int) -> list[VariantRecord]:
    """The variants of a profile in the last `count` versions that have one, the newest first."""
    rows = database.execute(
        "SELECT profile, precision, manifest FROM variants WHERE model=? AND profile=? ORDER BY version DESC LIMIT ?",
        (model, profile, count),
    )
    return [_variant(row) for row in rows]


def budgets(database: sqlite3.Connection, model: str, version: int) -> dict[str, int]:
    """Bytes that each profile may store of a version."""
    rows = database.execute("SELECT profile, budget FROM variants WHERE model=? AND version=?", (model, version))
    return {row["profile"]: row["budget"] for row in rows}


def newest_variants(database: sqlite3.Connection) -> list[VariantRecord]:
    """For every model and profile the newest variant: what is to be announced."""
    rows = database.execute(
        "SELECT profile, precision, manifest, MAX(version) FROM variants GROUP BY model, profile ORDER BY model, profile"
    )
    return [_variant(row) for row in rows]


def _variant(row: sqlite3.Row) -> VariantRecord:
    manifest = decode(decode(row["manifest"], Signed).payload, Manifest)
    return VariantRecord(row["profile"], row["precision"], manifest, row["manifest"])


def able_devices(database: sqlite3.Connection, model: str, version: int) -> frozenset[str]:
    """The devices that have a profile for which the version has a variant, and are neither revoked nor excluded."""
    rows = database.execute(
        """SELECT d.id FROM devices d JOIN variants v ON v.profile=d.profile LEFT JOIN standings s ON s.device=d.id
           WHERE d.revoked IS NULL AND s.excluded IS NULL AND v.model=? AND v.version=?""",
        (model, version),
    )
    return frozenset(row["id"] for row in rows)


def participants(database: sqlite3.Connection, version: VersionRecord) -> int:
    """How many devices can train the version: see `able_devices`."""
    return len(able_devices(database, version.model, version.version))
