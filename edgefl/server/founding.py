"""Founding a fleet: its authority, certificates, signing keys and first TUF metadata, put into a new directory in one step."""

import time
from pathlib import Path

from edgefl.errors import FleetError
from edgefl.identity.authority import Authority, Identity, found_authority, open_authority
from edgefl.identity.repository import found
from edgefl.identity.signing import Signer
from edgefl.store.atomic import read_file, write_file
from edgefl.store.fleet import DEFAULT_CLAIM_PORT, DEFAULT_PORT, Fleet, check_settings

ROOT_KEY, METADATA_KEY = "root.key", "metadata-root.key"


def create_fleet(
    path: Path,
    *,
    name: str,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    claim_port: int = DEFAULT_CLAIM_PORT,
    root: Path | None = None,
) -> Fleet:
    """A new fleet directory.

    Args:
        path: where; must not exist or be an empty directory.
        name: of the fleet, as in `edgefl.names`.
        host: name or address under which devices reach the broker; the broker's certificate is made for it.
        port: of the broker.
        root: directory that receives the root's key instead of `ca/`, so that the fleet directory never holds it.
        claim_port: of the claim broker; the next higher one is taken too.

    Raises:
        InputError: the name, host or port cannot be used.
        FleetError: the path is in use, or `root` holds a root's key already or is no directory.
        StoreError: it cannot be written; nothing is left behind.
    """
    settings = check_settings(name, host, port, claim_port)
    authority, founder = found_authority(name)
    broker, server = authority.broker((host,)), authority.server()
    roots, release, online = Signer.generate(), Signer.generate(), Signer.generate()
    files = {
        "ca/root.crt": founder.certificate,
        "ca/intermediate.crt": authority.intermediate.certificate,
        "ca/intermediate.key": authority.intermediate.key,
        "keys/broker.pem": broker.key + broker.certificate,
        "keys/server.pem": server.key + server.certificate,
        "keys/release.key": release.to_pem(),
        "keys/online.key": online.to_pem(),
    }
    metadata = found([roots], [release], online, time.time(), thresholds={})
    if root is None:
        everything = {**files, f"ca/{ROOT_KEY}": founder.key, f"keys/{METADATA_KEY}": roots.to_pem()}
        return Fleet.create(path, settings, everything, metadata)
    apart = _put_apart(root, path, founder, roots)
    try:
        return Fleet.create(path, settings, files, metadata)
    except BaseException:
        for file in apart:
            file.unlink(missing_ok=True)
        raise


def _put_apart(root: Path, fleet: Path, founder: Identity, roots: Signer) -> tuple[Path, ...]:
    """Write what belongs offline into a directory of its own, before a fleet exists that depends on it."""
    if not root.is_dir():
        raise FleetError(f"there is no directory {root} for the root's key", remedy="Mount or create it, then run this again")
    if root.resolve().is_relative_to(fleet.resolve()):
        raise FleetError(f"{root} is inside the fleet directory", remedy="Give a directory elsewhere, best on another medium")
    files = {root / ROOT_KEY: founder.key, root / "root.crt": founder.certificate, root / METADATA_KEY: roots.to_pem()}
    if any(file.exists() for file in files):
        raise FleetError(f"{root} holds another root's key or certificate", remedy="Give an empty directory")
    for file, data in files.items():
        write_file(file, data, 0o600 if file.suffix == ".key" else 0o644)
    return tuple(files)


def authority_of(fleet: Fleet) -> Authority:
    """Who signs this fleet's certificates.

    Raises:
        FleetError: its files are damaged.
        StoreError: they cannot be read.
    """
    return open_authority(
        fleet.settings.name,
        read_file(fleet.root_certificate),
        read_file(fleet.intermediate_key),
        read_file(fleet.intermediate_certificate),
    )
