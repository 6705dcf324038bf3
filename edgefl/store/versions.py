"""What has been pushed: versions of models and their variants, as rows of the fleet's database. They are written by a push."""

import sqlite3
from dataclasses import dataclass

import msgspec

from edgefl.errors import FleetError
from edgefl.layout import Layout
from edgefl.server.rollout_state import OPEN
from edgefl.wire.messages import decode, encode
from edgefl.wire.releases import Manifest
from edgefl.wire.topics import target_path

LISTED = 4
"""Newest versions for each profile, and newest releases of each model, that devices may hold; a rollback may go back as far."""


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One push of a model: the parent's layout and the SHA-256 of its float32 vector."""

    model: str
    version: int
    layout: Layout
    weights: bytes


@dataclass(frozen=True, slots=True)
class VariantRecord:
    """A variant of a version as made for one profile.

    Attributes:
        profile, precision: of which boards and weights.
        manifest: what devices know of it; `encoded` as it is announced and listed.
        axes: the rows of the parent that it keeps (`edgefl.compress.axes`); None for the leading corner of every tensor.
    """

    profile: str
    precision: str
    manifest: Manifest
    encoded: bytes
    axes: bytes | None = None


def latest_version(database: sqlite3.Connection, model: str) -> VersionRecord:
    """The newest version of a model.

    Raises:
        FleetError: it has never been pushed.
    """
    row = database.execute("SELECT * FROM versions WHERE model=? ORDER BY version DESC LIMIT 1", (model,)).fetchone()
    if row is None:
        raise FleetError(f"the fleet has no model {model!r}", remedy=f"Push it first: edgefl push {model}")
    return _version(row)


def released_version(database: sqlite3.Connection, model: str) -> VersionRecord:
    """The version of a model that is its release (`edgefl.store.releases`).

    Raises:
        FleetError: it has never been pushed, or every push of it was held back.
    """
    row = database.execute(
        "SELECT v.* FROM versions v JOIN releases r ON r.model=v.model AND r.version=v.version WHERE v.model=?", (model,)
    ).fetchone()
    if row is None:
        newest = latest_version(database, model)
        name = f"{model}@{newest.version}"
        raise FleetError(f"no version of {model} is released", found=f"{name}, held back", remedy=f"edgefl rollout start {name}")
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
        "SELECT profile, precision, manifest, axes FROM variants WHERE model=? AND version=? ORDER BY profile", (model, version)
    )
    return [_variant(row) for row in rows]


def earlier_variants(database: sqlite3.Connection, model: str, profile: str, count: int) -> list[VariantRecord]:
    """The variants of a profile in the last `count` versions that have one, the newest first."""
    rows = database.execute(
        "SELECT profile, precision, manifest, axes FROM variants WHERE model=? AND profile=? ORDER BY version DESC LIMIT ?",
        (model, profile, count),
    )
    return [_variant(row) for row in rows]


def budgets(database: sqlite3.Connection, model: str, version: int) -> dict[str, int]:
    """Bytes that each profile may store of a version."""
    rows = database.execute("SELECT profile, budget FROM variants WHERE model=? AND version=?", (model, version))
    return {row["profile"]: row["budget"] for row in rows}


def all_variants(database: sqlite3.Connection) -> list[tuple[str, str, int]]:
    """Model, profile and version of every variant, the oldest first."""
    rows = database.execute("SELECT model, profile, version FROM variants ORDER BY model, profile, version")
    return [(row["model"], row["profile"], row["version"]) for row in rows]


def get_variant(database: sqlite3.Connection, model: str, profile: str, version: int) -> VariantRecord:
    """One variant.

    Raises:
        FleetError: there is none.
    """
    row = database.execute(
        "SELECT profile, precision, manifest, axes FROM variants WHERE model=? AND profile=? AND version=?",
        (model, profile, version),
    ).fetchone()
    if row is None:
        raise FleetError(f"{model}@{version} has no variant for {profile}", remedy="List what there is: edgefl status")
    return _variant(row)


def listed_manifests(database: sqlite3.Connection) -> dict[str, bytes]:
    """The manifests that devices may hold, by their path in the metadata `MODEL/PROFILE/VERSION`.

    Of each model and profile these are the newest `LISTED`, the last `LISTED` releases that were not rolled back, and what a
    rollout that is under way wants.
    """
    rows = database.execute(
        f"""SELECT v.* FROM
               (SELECT *, ROW_NUMBER() OVER (PARTITION BY model, profile ORDER BY version DESC) AS place FROM variants) v
           WHERE place<=?
           OR version IN (SELECT version FROM rollouts o WHERE o.model=v.model AND o.state IN ({", ".join("?" * len(OPEN))}))
           OR version IN (SELECT version FROM released r WHERE r.model=v.model ORDER BY r.id DESC LIMIT ?)
           ORDER BY model, profile, version""",  # noqa: S608 - question marks
        (LISTED, *OPEN, LISTED),
    )
    return {target_path(row["model"], row["profile"], row["version"]): row["manifest"] for row in rows}


def replace_manifest(database: sqlite3.Connection, manifest: Manifest) -> None:
    """Write another manifest of a variant down, in the transaction that is open."""
    row = (encode(manifest), manifest.model, manifest.profile, manifest.version)
    database.execute("UPDATE variants SET manifest=? WHERE model=? AND profile=? AND version=?", row)


def _variant(row: sqlite3.Row) -> VariantRecord:
    return VariantRecord(row["profile"], row["precision"], decode(row["manifest"], Manifest), row["manifest"], row["axes"])


def able_devices(database: sqlite3.Connection, model: str, version: int) -> frozenset[str]:
    """The devices that can train a version.

    They have a profile for which it has a variant that trains, and are neither unclaimed, revoked nor excluded.
    """
    profiles = {record.profile for record in variants(database, model, version) if record.manifest.trains}
    rows = database.execute(
        """SELECT d.id, d.profile FROM devices d LEFT JOIN standings s ON s.device=d.id
           WHERE d.revoked IS NULL AND d.certificate<>'' AND s.excluded IS NULL"""
    )
    return frozenset(row["id"] for row in rows if row["profile"] in profiles)


def participants(database: sqlite3.Connection, version: VersionRecord) -> int:
    """How many devices can train the version: see `able_devices`."""
    return len(able_devices(database, version.model, version.version))
