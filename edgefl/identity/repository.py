"""The fleet's TUF repository: who may say which manifests exist, as metadata documents. Made here, written down by the store.

Model (The Update Framework, specification 1.0.34): four roles, each a signed document.

    root        which keys speak for which role; signed by the *root* keys, which belong offline
    targets     path, length and SHA-256 of every manifest that devices may hold; signed by the *release* keys
    snapshot    the version of `targets`; signed by the *online* key
    timestamp   the version and hash of `snapshot`; signed by the online key, short-lived, renewed by the server

A manifest is the target `MODEL/PROFILE/VERSION`. It names the key whose signature makes the round orders of its version valid, so
that the targets role authorises round weights.

Rules: documents are values; a function takes the current ones and gives the changed ones. Versions only rise. Every version of
root stays published, because a device that was away follows the chain. Everything of one call belongs together and is to be
written in one transaction.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, TargetFile, Targets, Timestamp

from edgefl.errors import FleetError
from edgefl.identity.signing import KEY_HINT, Signer

ROOT, TARGETS, SNAPSHOT, TIMESTAMP = "root", "targets", "snapshot", "timestamp"
ROLES = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)
DAY = 86400
LIFETIMES: Mapping[str, int] = {ROOT: 730 * DAY, TARGETS: 365 * DAY, SNAPSHOT: 14 * DAY, TIMESTAMP: 14 * DAY}
"""Seconds for which a document is valid; an expired one stops new versions, never what devices hold."""
RENEW_BEFORE: Mapping[str, int] = {SNAPSHOT: 7 * DAY, TIMESTAMP: 13 * DAY}
"""Seconds before its end at which the server makes a document anew: the timestamp once a day."""

Documents = Mapping[str, bytes]
"""By name: `targets`, `snapshot`, `timestamp` and `N.root` for every N."""
T = TypeVar("T", Root, Targets, Snapshot, Timestamp)


def found(
    root: Sequence[Signer], release: Sequence[Signer], online: Signer, now: float, *, thresholds: Mapping[str, int]
) -> Documents:
    """The first documents of a fleet.

    Args:
        root: its keys.
        release: the keys of targets.
        online: the key of snapshot and timestamp.
        now: seconds since 1970.
        thresholds: how many signatures `root` and `targets` need; 1 where nothing is said.

    Raises:
        FleetError: more signatures are asked for than there are keys.
    """
    content = Root(expires=_until(ROOT, now), consistent_snapshot=False)
    keys = {ROOT: root, TARGETS: release, SNAPSHOT: (online,), TIMESTAMP: (online,)}
    for role, signers in keys.items():
        _appoint(content, role, signers, thresholds.get(role, 1))
    made = {f"1.{ROOT}": _signed(content, root)}
    targets = Targets(expires=_until(TARGETS, now))
    return {**made, TARGETS: _signed(targets, release), **_pinned(targets, None, None, online, now)}


def with_targets(
    documents: Documents, manifests: Mapping[str, bytes], release: Sequence[Signer], online: Signer, now: float
) -> Documents:
    """The documents that change when exactly these manifests, by `target_path`, are what devices may hold.

    Raises:
        FleetError: the signers are not those that root appoints, or too few.
    """
    before = _read(documents, TARGETS, Targets)
    files = {path: TargetFile.from_data(path, data, ["sha256"]) for path, data in manifests.items()}
    targets = Targets(version=before.version + 1, expires=_until(TARGETS, now), targets=files)
    made = _signed(targets, release)
    _check(documents, TARGETS, made)
    return {TARGETS: made, **_pinned(targets, *_online(documents), online, now)}


def renewed(documents: Documents, online: Signer, now: float) -> Documents:
    """Snapshot and timestamp made anew if one of them is near its end; nothing otherwise.

    Raises:
        FleetError: another key speaks for them now; whatever this one signed, nobody would believe it.
    """
    if online_key(newest_root(documents)[1]) != online.public_key:
        raise FleetError("this server's online key was replaced", remedy="Restart `edgefl serve`, which then takes the new one")
    snapshot, timestamp = _online(documents)
    ends = {SNAPSHOT: snapshot.expires.timestamp(), TIMESTAMP: timestamp.expires.timestamp()}
    if all(now < ends[role] - RENEW_BEFORE[role] for role in ends):
        return {}
    return _pinned(_read(documents, TARGETS, Targets), snapshot, timestamp, online, now)


def appointed(
    documents: Documents, role: str, keys: Sequence[Signer], threshold: int, signers: Sequence[Signer], now: float
) -> Documents:
    """A new version of root in which other keys speak for a role (`online` means snapshot and timestamp).

    Args:
        documents: the current ones.
        role: `root`, `targets` or `online`.
        keys: the role's new keys, all of them.
        threshold: how many of them must sign.
        signers: root keys; a new root needs enough signatures by the old root keys, and by the new ones if these change.
        now: seconds since 1970.

    Raises:
        FleetError: too few root keys are here, or more signatures are asked for than there are keys.
    """
    number, content = newest_root(documents)
    content.version, content.expires = number + 1, _until(ROOT, now)
    for name in (SNAPSHOT, TIMESTAMP) if role == "online" else (role,):
        for keyid in list(content.roles[name].keyids):
            content.revoke_key(keyid, name)
        _appoint(content, name, keys, threshold)
    made = _signed(content, [*signers, *(keys if role == ROOT else ())])
    _check(documents, ROOT, made)
    return {f"{number + 1}.{ROOT}": made}


def newest_root(documents: Documents) -> tuple[int, Root]:
    """Number and content of the root in force. Raises FleetError."""
    number = max(int(name.partition(".")[0]) for name in documents if name.endswith(f".{ROOT}"))
    return number, _read(documents, f"{number}.{ROOT}", Root)


def online_key(root: Root) -> bytes:
    """The 32 raw bytes of the key that speaks for the timestamp role, and that signs assignments."""
    (keyid,) = root.roles[TIMESTAMP].keyids
    return bytes.fromhex(root.keys[keyid].keyval["public"])


def key_hints(documents: Documents, role: str) -> tuple[tuple[str, ...], int]:
    """The first `KEY_HINT` hexadecimal digits of the keys that speak for a role, and how many must sign. Raises FleetError."""
    _, root = newest_root(documents)
    keys = (root.keys[keyid].keyval["public"][:KEY_HINT] for keyid in root.roles[role].keyids)
    return tuple(keys), root.roles[role].threshold


def listed(documents: Documents) -> dict[str, bytes]:
    """SHA-256 of every manifest that devices may hold, by path. Raises FleetError."""
    targets = _read(documents, TARGETS, Targets).targets
    return {path: bytes.fromhex(file.hashes["sha256"]) for path, file in targets.items()}


def expiries(documents: Documents) -> dict[str, tuple[int, float]]:
    """Version and end (seconds since 1970) of each role's document in force. Raises FleetError."""
    number, root = newest_root(documents)
    snapshot, timestamp = _online(documents)
    contents: dict[str, Signed] = {
        ROOT: root,
        TARGETS: _read(documents, TARGETS, Targets),
        SNAPSHOT: snapshot,
        TIMESTAMP: timestamp,
    }
    return {role: (one.version if role != ROOT else number, one.expires.timestamp()) for role, one in contents.items()}


def _online(documents: Documents) -> tuple[Snapshot, Timestamp]:
    return _read(documents, SNAPSHOT, Snapshot), _read(documents, TIMESTAMP, Timestamp)


def _pinned(targets: Targets, snapshot: Snapshot | None, timestamp: Timestamp | None, online: Signer, now: float) -> Documents:
    """A new snapshot of these targets and a new timestamp of it."""
    number = snapshot.version + 1 if snapshot else 1
    listing = {"targets.json": MetaFile(version=targets.version)}
    made = _signed(Snapshot(version=number, expires=_until(SNAPSHOT, now), meta=listing), [online])
    pin = MetaFile.from_data(number, made, ["sha256"])
    pin.length = None  # the hash says enough, and another snapshot shall be called a mix whatever its length
    stamp = Timestamp(version=timestamp.version + 1 if timestamp else 1, expires=_until(TIMESTAMP, now), snapshot_meta=pin)
    return {SNAPSHOT: made, TIMESTAMP: _signed(stamp, [online])}


def _appoint(content: Root, role: str, keys: Sequence[Signer], threshold: int) -> None:
    if not 1 <= threshold <= len(keys):
        raise FleetError(
            f"the role {role} cannot need {threshold} signatures",
            expected=f"1 to {len(keys)}",
            remedy="Give more keys, or ask for fewer",
        )
    for key in keys:
        content.add_key(CryptoSigner(key.private).public_key, role)
    content.roles[role].threshold = threshold


def _signed(content: T, signers: Sequence[Signer]) -> bytes:
    document = Metadata(content)
    for signer in signers:
        document.sign(CryptoSigner(signer.private), append=True)
    return document.to_bytes()


def _check(documents: Documents, role: str, made: bytes) -> None:
    """Raises FleetError unless the root in force accepts a document."""
    _, root = newest_root(documents)
    try:
        document = Metadata[Targets].from_bytes(made)  # of either role; only its bytes and signatures are looked at
        root.verify_delegate(role, document.signed_bytes, document.signatures)
    except RepositoryError as error:
        needed = root.roles[role].threshold
        raise FleetError(
            f"the keys that are here may not speak for {role}",
            expected=f"{needed} of the fleet's {'release' if role == TARGETS else role} keys",
            found=str(error)[:200],
            remedy="Give the directory that holds them with --keys",
        ) from None


def _read(documents: Documents, name: str, kind: type[T]) -> T:
    try:
        content = cast("Signed", Metadata[Targets].from_bytes(documents[name]).signed)  # of any role until it is looked at
    except (KeyError, RepositoryError) as error:
        raise FleetError(
            f"the fleet's {name} metadata is damaged", found=str(error)[:200], remedy="Restore the fleet from a backup"
        ) from None
    if not isinstance(content, kind):
        raise FleetError(f"the fleet's {name} metadata is of another role", remedy="Restore the fleet from a backup")
    return content


def _until(role: str, now: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(int(now) + LIFETIMES[role], dt.UTC)
