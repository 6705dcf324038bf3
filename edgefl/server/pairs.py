"""The fleet's own two pairs, the broker's and the server's: a key and its certificate, and how a new pair takes their place.

Model: a pair is one file, `FLEET/keys/OWNER.pem`, so that it changes in one rename (docs/adr/0018-the-fleets-own-pairs.md). Its
certificate is entered like a device's (`store.credentials`), under the owner's name: *pending* when it is signed, *active* when
it has been seen in use. What was in use before is then *revoked* if it is the server's, whose rights are all rights, and
*replaced* if it is the broker's: devices read no list of revoked certificates.

Rules: every pair has a key of its own. The server's old pair lies in `server.previous.pem` until the new one has been seen in
use, so that a server which is not let in with it can go back.
"""

import sqlite3
from pathlib import Path
from typing import Literal

from edgefl.errors import ConfigError, FleetError
from edgefl.identity.authority import LEAF_DAYS, Identity
from edgefl.identity.validity import Validity, validity_of
from edgefl.names import BROKER, SERVER
from edgefl.server.founding import authority_of
from edgefl.store.atomic import read_file, replace, store_error, write_file
from edgefl.store.audit import record
from edgefl.store.credentials import Certificate, add_certificate, certificates_of, set_state
from edgefl.store.database import transaction
from edgefl.store.fleet import PAIRS, Fleet
from edgefl.store.lock import file_lock

Owner = Literal["broker", "server"]
NAMES: dict[str, str] = {"broker": BROKER, "server": SERVER}
RENEW_AT = 0.6
"""Part of its life after which a pair is renewed, as on boards."""
DAY = 86400.0
LOCK = "pairs.lock"


def held(fleet: Fleet, owner: Owner) -> Validity:
    """What the certificate in use says of itself.

    Raises:
        FleetError: there is none in the file.
        StoreError: the file cannot be read.
    """
    path = fleet.broker_certificate if owner == "broker" else fleet.server_certificate
    try:
        return validity_of(read_file(path))
    except ConfigError as error:
        remedy = f"Restore it from a backup, or make a new one with `edgefl certificates renew {owner} --days N`"
        raise FleetError(f"{path} holds no certificate", found=error.found, remedy=remedy) from None


def is_due(one: Validity, now: float) -> bool:
    """Whether a certificate has lived so long that the next one should be made."""
    return now >= one.begins + RENEW_AT * (one.ends - one.begins)


def join_pairs(fleet: Fleet) -> None:
    """Put pairs that an older edgefl left in two files into one, before anybody is told where they are. Raises StoreError."""
    for owner in PAIRS:
        if not fleet.pair(owner).exists():
            key, certificate = (read_file(fleet.keys / f"{owner}{end}") for end in (".key", ".crt"))
            write_file(fleet.pair(owner), key + certificate, 0o600)


def renew(fleet: Fleet, database: sqlite3.Connection, owner: Owner, now: float, days: float | None = None) -> Validity:
    """Make a new pair and put it in the place of the old one; what its certificate says.

    Args:
        fleet: whose.
        database: of the fleet.
        owner: of the pair.
        now: seconds since 1970.
        days: of the new certificate's life; as long as the old one's if not given.

    Raises:
        FleetError: the authority is damaged, or the old certificate is and `days` is not given.
        StoreError: a file or the database cannot be written; the old pair is as it was.
    """
    authority = authority_of(fleet)
    with file_lock(fleet.keys / LOCK):
        old = _old(fleet, owner, days)
        life = days or LEAF_DAYS
        if old is not None and days is None:
            life = (old.ends - old.begins) / DAY - 1.0  # every certificate begins a day early
        hosts = (*(old.hosts if old else ()), fleet.settings.host)
        made = authority.broker(hosts, days=life) if owner == "broker" else authority.server(days=life)
        _enter(database, owner, old, made, now)
        if owner == "server" and old is not None:
            files = dict.fromkeys((fleet.server_key, fleet.server_certificate))  # one, or two of an older edgefl
            write_file(previous(fleet), b"".join(map(read_file, files)), 0o600)
        write_file(fleet.pair(owner), made.key + made.certificate, 0o600)
    return validity_of(made.certificate)


def note_use(fleet: Fleet, database: sqlite3.Connection, owner: Owner, now: float, serial: str) -> bool:
    """A certificate has been seen in use: it is active, and all others are done with. False if that was so before.

    Raises:
        StoreError: the database cannot be written now.
    """
    known = certificates_of(database, NAMES[owner])
    used = next((one for one in known if one.serial == serial), None)
    others = [one for one in known if one is not used and one.state in ("pending", "active")]
    if used is None or (used.state == "active" and not others):
        return False
    with transaction(database):
        for one in others:
            set_state(database, one, "revoked" if owner == "server" else "replaced", now)
        if used.state != "active":
            set_state(database, used, "active", now)
    if owner == "server":
        try:
            previous(fleet).unlink(missing_ok=True)
        except OSError as error:
            raise store_error("remove", previous(fleet), error) from error
    return True


def go_back(fleet: Fleet, database: sqlite3.Connection, now: float) -> bool:
    """Let the server use its previous pair again, if the new one has never been seen in use. Raises StoreError."""
    with file_lock(fleet.keys / LOCK):
        if not previous(fleet).exists():
            return False
        replace(previous(fleet), fleet.pair("server"))
    with transaction(database):
        record(database, now, "renewal-undone", SERVER, "no connection with the new certificate")
    return True


def previous(fleet: Fleet) -> Path:
    """Where the server's old pair is until the new one has been seen in use."""
    return fleet.keys / "server.previous.pem"


def _old(fleet: Fleet, owner: Owner, days: float | None) -> Validity | None:
    """The pair in place; a damaged one is none when the new one's life is known without it."""
    try:
        return held(fleet, owner)
    except FleetError:
        if days is None:
            raise
        return None


def _enter(database: sqlite3.Connection, owner: Owner, old: Validity | None, made: Identity, now: float) -> None:
    """Enter the new certificate, and the old one if it is from the founding."""
    name, new = NAMES[owner], validity_of(made.certificate)
    known = {one.serial for one in certificates_of(database, name)}
    with transaction(database):
        if old is not None and old.serial not in known:
            add_certificate(database, Certificate(old.serial, name, old.begins, old.ends, "active", now), "founding")
        add_certificate(database, Certificate(new.serial, name, now, new.ends, "pending", now), "renewal")
