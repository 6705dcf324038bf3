"""The fleet's signing keys: which files hold them, which of them the root appoints, and how they are replaced.

Model: a role's keys are the files of its name (`online*.key`, `release*.key`, `metadata-root*.key`) in `FLEET/keys` and in the
directories that the operator gives (a USB stick). Which of them speak for the role is what the root metadata says, not what they
are called: a rotation writes the new key first, then puts the new root into force, and the old file is worth nothing then.

    root      appoints all keys; its files belong offline
    release   lists manifests (TUF's targets role)
    online    the running server's: snapshot, timestamp, assignments and round orders
"""

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

import msgspec

from edgefl.errors import FleetError
from edgefl.identity.repository import TARGETS, TIMESTAMP, Documents, appointed, expiries, key_hints, with_targets
from edgefl.identity.signing import KEY_HINT, Signer
from edgefl.store.atomic import store_error, write_file
from edgefl.store.database import open_database, transaction
from edgefl.store.documents import documents, put_documents
from edgefl.store.fleet import Fleet
from edgefl.store.versions import listed_manifests, replace_manifest
from edgefl.wire.messages import decode
from edgefl.wire.releases import Manifest

Role = Literal["root", "release", "online"]
_FILES = {"root": "metadata-root", "release": "release", "online": "online"}
_TUF = {"root": "root", "release": TARGETS, "online": TIMESTAMP}


class RoleStatus(msgspec.Struct, frozen=True):
    """Who speaks for a role: hints of its keys, which of these are here, how many must sign, and when its document ends."""

    role: str
    keys: list[str]
    here: list[str]
    threshold: int
    version: int
    expires: float


def signers(fleet: Fleet, known: Documents, role: Role, places: Iterable[Path] = ()) -> list[Signer]:
    """The keys here that may speak for a role.

    Args:
        fleet: whose.
        known: the metadata in force.
        role: which.
        places: directories to look in beside the fleet's own.

    Raises:
        FleetError: none of them is here, or a key file is damaged.
        StoreError: a file cannot be read.
    """
    hints, _ = key_hints(known, _TUF[role])
    found = {key.public_key: key for place in (fleet.keys, *places) for key in _keys(place, role)}
    able = [key for key in found.values() if key.public_key.hex()[:KEY_HINT] in hints]
    if not able:
        raise FleetError(
            f"no {role} key of this fleet is here",
            expected=f"{_FILES[role]}*.key with the public key {' or '.join(hints)} in {fleet.keys}",
            remedy="Give the directory that holds it with --keys, or restore it from a backup",
        )
    return able


def online_signer(fleet: Fleet) -> Signer:
    """The running server's key. Raises FleetError or StoreError."""
    with closing(open_database(fleet.database)) as database:
        return signers(fleet, documents(database), "online")[0]


def roles(fleet: Fleet, places: Iterable[Path] = ()) -> list[RoleStatus]:
    """Who speaks for each role. Raises FleetError or StoreError."""
    with closing(open_database(fleet.database)) as database:
        known = documents(database)
    ends, result = expiries(known), []
    every: tuple[Role, ...] = ("root", "release", "online")
    for role in every:
        hints, threshold = key_hints(known, _TUF[role])
        held = {key.public_key.hex()[:KEY_HINT] for place in (fleet.keys, *places) for key in _keys(place, role)}
        result.append(RoleStatus(role, list(hints), [hint for hint in hints if hint in held], threshold, *ends[_TUF[role]]))
    return result


def rotate(fleet: Fleet, role: Role, places: Sequence[Path], now: float, *, count: int = 1, threshold: int = 1) -> list[str]:
    """Let new keys speak for a role, instead of the ones that do now.

    Args:
        fleet: whose.
        role: which.
        places: directories that hold the root's keys, and the release keys if they are not in the fleet's.
        now: seconds since 1970.
        count: how many new keys.
        threshold: how many of them must sign.

    Returns:
        Names of the new key files.

    Raises:
        FleetError: keys that are needed are not here.
        StoreError: a file or the database cannot be written; then nothing has changed but new key files without rights.
    """
    new = [Signer.generate() for _ in range(count)]
    paths = [
        (places[0] if role == "root" and places else fleet.keys) / f"{_FILES[role]}-{key.public_key.hex()[:KEY_HINT]}.key"
        for key in new
    ]
    with closing(open_database(fleet.database)) as database, transaction(database):
        known = documents(database)
        root_keys = signers(fleet, known, "root", places)
        online = new[0] if role == "online" else signers(fleet, known, "online")[0]
        release = new if role == "release" else signers(fleet, known, "release", places)
        known |= (changed := dict(appointed(known, "targets" if role == "release" else role, new, threshold, root_keys, now)))
        for path, key in zip(paths, new, strict=True):
            write_file(path, key.to_pem(), 0o600)
        if role == "online":
            _name_round_key(database, online.public_key)
        if role != "root":
            changed |= with_targets(known, listed_manifests(database), release, online, now)
        put_documents(database, changed)
    return [str(path) for path in paths]


def _name_round_key(database: sqlite3.Connection, key: bytes) -> None:
    """Let every manifest name another key for round orders."""
    for data in listed_manifests(database).values():
        replace_manifest(database, msgspec.structs.replace(decode(data, Manifest), round_key=key))


def _keys(place: Path, role: Role) -> list[Signer]:
    try:
        return [Signer.from_pem(path.read_bytes()) for path in sorted(place.glob(f"{_FILES[role]}*.key"))]
    except OSError as error:
        raise store_error("read keys in", place, error) from error
