"""The files through which a broker learns who is revoked: the list of certificates and the access file.

Model: both are made anew from the registry, as a whole, as often as anybody likes. Beside the revoked devices' certificates every
list holds that of the *canary*, which is made with the first list and revoked from birth: a broker that lets the canary in does
not read the list (`edgefl broker check`).

Rule: a file is replaced as a whole, never edited. Mosquitto 2.0.11 that finds the list missing or damaged when it is told to
reload goes on *without one*, and lets everybody in (measured; see docs/adr/0011-revocation.md).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from edgefl.brokers.acl import mosquitto_acl
from edgefl.errors import SignatureError
from edgefl.identity.authority import LEAF_DAYS, Authority, serial_of
from edgefl.identity.crl import Crl, read_crl, sign_crl
from edgefl.names import CHECK_DEVICES
from edgefl.store.atomic import read_file, store_error, write_file

LIST = "crl.pem"
CANARY = "canary"
RENEW_SECONDS = 24 * 3600.0
"""How often a running broker gets a list with a new date."""


def crl_path(directory: Path) -> Path:
    """Where the list is, in the broker's directory."""
    return directory / LIST


def write_list(directory: Path, authority: Authority, serials: Mapping[int, float], now: float, also: Iterable[int] = ()) -> Crl:
    """Write the list of revoked certificates anew; the list as written.

    Args:
        directory: the broker's, `FLEET/broker`.
        authority: of the fleet.
        serials: of all revoked certificates, and since when (seconds since 1970).
        now: seconds since 1970.
        also: further serial numbers, for this list only.

    Raises:
        FleetError: the authority is damaged.
        StoreError: the file cannot be written; the old file is as it was.
    """
    listed = {**serials, _canary(directory, authority): now, **dict.fromkeys(also, now)}
    pem = sign_crl(authority, listed, last=_last(directory, authority))
    write_file(crl_path(directory), pem)
    return read_crl(pem, authority)


def write_access(directory: Path, revoked: Iterable[str]) -> None:
    """Write Mosquitto's access file anew, with these devices denied everything. Raises StoreError."""
    write_file(directory / "acl", mosquitto_acl(revoked).encode(), 0o600)


def current_list(directory: Path, authority: Authority) -> Crl | None:
    """The list that lies there, or None without one.

    Raises:
        SignatureError: it is not this fleet's, or damaged.
        StoreError: it cannot be read.
    """
    try:
        return read_crl(crl_path(directory).read_bytes(), authority)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise store_error("read", crl_path(directory), error) from error


def canary_files(directory: Path) -> tuple[Path, Path] | None:
    """Certificate and key of the canary, or None before the first list."""
    certificate, key = directory / f"{CANARY}.crt", directory / f"{CANARY}.key"
    return (certificate, key) if certificate.is_file() and key.is_file() else None


def _canary(directory: Path, authority: Authority) -> int:
    """Serial number of the canary, which is made if there is none yet."""
    files = canary_files(directory)
    if files is None:
        canary = authority.probe(CHECK_DEVICES[0], days=LEAF_DAYS)
        write_file(directory / f"{CANARY}.key", canary.key, 0o600)
        write_file(directory / f"{CANARY}.crt", canary.certificate)
        return int(canary.serial, 16)
    return serial_of(read_file(files[0]))


def _last(directory: Path, authority: Authority) -> Crl | None:
    """The list that lies there; None for one that is none of ours, which the next list replaces."""
    try:
        return current_list(directory, authority)
    except SignatureError:
        return None
