"""Founding a fleet: its authority, certificates and signing keys, put into a new directory in one step."""

from pathlib import Path

from edgefl.identity.authority import Authority, found_authority, open_authority
from edgefl.identity.signing import Signer
from edgefl.store.atomic import store_error
from edgefl.store.fleet import DEFAULT_CLAIM_PORT, DEFAULT_PORT, Fleet, check_settings


def create_fleet(
    path: Path, *, name: str, host: str = "127.0.0.1", port: int = DEFAULT_PORT, claim_port: int = DEFAULT_CLAIM_PORT
) -> Fleet:
    """A new fleet directory.

    Args:
        path: where; must not exist or be an empty directory.
        name: of the fleet, as in `edgefl.names`.
        host: name or address under which devices reach the broker; the broker's certificate is made for it.
        port: of the broker.
        claim_port: of the claim broker; the next higher one is taken too.

    Raises:
        InputError: the name, host or port cannot be used.
        FleetError: the path is in use.
        StoreError: it cannot be written; nothing is left behind.
    """
    settings = check_settings(name, host, port, claim_port)
    authority, root = found_authority(name)
    broker, server = authority.broker((host,)), authority.server()
    files = {
        "ca/root.crt": root.certificate,
        "ca/root.key": root.key,
        "ca/intermediate.crt": authority.intermediate.certificate,
        "ca/intermediate.key": authority.intermediate.key,
        "keys/broker.crt": broker.certificate,
        "keys/broker.key": broker.key,
        "keys/server.crt": server.certificate,
        "keys/server.key": server.key,
        "keys/release.key": Signer.generate().to_pem(),
        "keys/online.key": Signer.generate().to_pem(),
    }
    return Fleet.create(path, settings, files)


def authority_of(fleet: Fleet) -> Authority:
    """Who signs this fleet's certificates.

    Raises:
        FleetError: its files are damaged.
        StoreError: they cannot be read.
    """
    return open_authority(
        fleet.settings.name, _read(fleet.root_certificate), _read(fleet.intermediate_key), _read(fleet.intermediate_certificate)
    )


def release_signer(fleet: Fleet) -> Signer:
    """The key that signs manifests. Raises FleetError or StoreError."""
    return Signer.from_pem(_read(fleet.release_key))


def online_signer(fleet: Fleet) -> Signer:
    """The key that signs round orders. Raises FleetError or StoreError."""
    return Signer.from_pem(_read(fleet.online_key))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise store_error("read", path, error) from error
