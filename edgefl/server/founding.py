"""Founding a fleet: its authority, certificates, signing keys and first TUF metadata, put into a new directory in one step."""

import time
from pathlib import Path

from edgefl.identity.authority import Authority, found_authority, open_authority
from edgefl.identity.repository import found
from edgefl.identity.signing import Signer
from edgefl.store.atomic import store_error
from edgefl.store.fleet import DEFAULT_PORT, Fleet, check_settings


def create_fleet(path: Path, *, name: str, host: str = "127.0.0.1", port: int = DEFAULT_PORT) -> Fleet:
    """A new fleet directory.

    Args:
        path: where; must not exist or be an empty directory.
        name: of the fleet, as in `edgefl.names`.
        host: name or address under which devices reach the broker; the broker's certificate is made for it.
        port: of the broker.

    Raises:
        InputError: the name, host or port cannot be used.
        FleetError: the path is in use.
        StoreError: it cannot be written; nothing is left behind.
    """
    settings = check_settings(name, host, port)
    authority, root = found_authority(name)
    broker, server = authority.broker((host,)), authority.server()
    roots, release, online = Signer.generate(), Signer.generate(), Signer.generate()
    files = {
        "ca/root.crt": root.certificate,
        "ca/root.key": root.key,
        "ca/intermediate.crt": authority.intermediate.certificate,
        "ca/intermediate.key": authority.intermediate.key,
        "keys/broker.crt": broker.certificate,
        "keys/broker.key": broker.key,
        "keys/server.crt": server.certificate,
        "keys/server.key": server.key,
        "keys/root.key": roots.to_pem(),
        "keys/release.key": release.to_pem(),
        "keys/online.key": online.to_pem(),
    }
    return Fleet.create(path, settings, files, found([roots], [release], online, time.time(), thresholds={}))


def authority_of(fleet: Fleet) -> Authority:
    """Who signs this fleet's certificates.

    Raises:
        FleetError: its files are damaged.
        StoreError: they cannot be read.
    """
    return open_authority(
        fleet.settings.name, _read(fleet.root_certificate), _read(fleet.intermediate_key), _read(fleet.intermediate_certificate)
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise store_error("read", path, error) from error
