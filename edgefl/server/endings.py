"""What in a fleet ends when: certificates, the list of revoked ones, signed metadata; and what an operator should do about it.

Model: everything that ends is looked at in one place, in the order of what its end costs. Each has a time before its end from
which on it is `soon`: so long that whoever renews it by himself would have done so, and that an operator still can.
"""

import sqlite3
from collections.abc import Iterator
from typing import Literal

import msgspec

from edgefl.brokers.revoked import current_list
from edgefl.errors import ConfigError, EdgeflError
from edgefl.identity.repository import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, expiries
from edgefl.identity.validity import validity_of
from edgefl.server.founding import authority_of
from edgefl.server.pairs import Owner, held
from edgefl.store.credentials import ending_certificates
from edgefl.store.documents import documents
from edgefl.store.fleet import Fleet

State = Literal["ok", "soon", "over", "damaged"]
DAY = 86400.0
SOON: dict[str, int] = {
    "broker": 30,
    "server": 30,
    "intermediate": 365,
    "root": 365,
    "list": 30,
    "root metadata": 60,
    "targets metadata": 30,
    "snapshot metadata": 3,
    "timestamp metadata": 3,
}
"""Days before its end from which on something should be done."""
DEVICE_DAYS = 7
"""The same of a device's certificate, which it renews itself after 60 % of its life when it is there."""
MOST_DEVICES = 20
SERVE = "Run `edgefl serve`, which renews it every day or week"
REMEDIES: dict[str, str] = {
    "broker": "Run `edgefl certificates renew broker`",
    "server": "Run `edgefl certificates renew server`",
    "intermediate": "Found a new fleet and provision the devices anew in time; nothing renews an authority",
    "root": "Found a new fleet and provision the devices anew in time; nothing renews an authority",
    "list": "Restart `edgefl broker`, or run `edgefl broker configure` and let the broker reload; its end locks everybody out",
    "root metadata": "Run `edgefl keys rotate root --keys DIR` with the directory of the root's keys",
    "targets metadata": "Push any version, or run `edgefl keys rotate release`: both sign it anew",
    "snapshot metadata": SERVE,
    "timestamp metadata": SERVE,
}


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that ends; `ends` in seconds since 1970, None if it cannot be read. `remedy` is empty while it is `ok`."""

    name: str
    state: State
    ends: float | None
    remedy: str = ""


def endings(fleet: Fleet, database: sqlite3.Connection, now: float) -> list[Ending]:
    """Everything of a fleet that ends, `now` in seconds since 1970.

    Raises:
        StoreError: the database cannot be read.
    """
    found = [_judge(name, ends, now) for name, ends in _of_files(fleet)]
    try:
        roles = expiries(documents(database))
    except EdgeflError:
        roles = {}
    names = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)
    found += [_judge(f"{role} metadata", roles[role][1] if role in roles else None, now) for role in names]
    remedy = "Let the board connect: it renews by itself; after its end it needs `edgefl provision ID --claim --again`"
    for device, ends in ending_certificates(database, now + DEVICE_DAYS * DAY, MOST_DEVICES):
        found.append(Ending(name=f"device {device}", state="soon" if now < ends else "over", ends=ends, remedy=remedy))
    return found


def warnings(found: list[Ending]) -> list[Ending]:
    """Those about which something should be done."""
    return [one for one in found if one.state != "ok"]


def _of_files(fleet: Fleet) -> Iterator[tuple[str, float | None]]:
    owners: tuple[Owner, ...] = ("broker", "server")
    for owner in owners:
        try:
            yield owner, held(fleet, owner).ends
        except EdgeflError:
            yield owner, None
    for name, path in (("intermediate", fleet.intermediate_certificate), ("root", fleet.root_certificate)):
        try:
            yield name, validity_of(path.read_bytes()).ends
        except (OSError, ConfigError):
            yield name, None
    try:
        crl = current_list(fleet.broker, authority_of(fleet))
    except EdgeflError:
        yield "list", None
    else:
        if crl is not None:  # before the first start of a broker there is none
            yield "list", crl.ends


def _judge(name: str, ends: float | None, now: float) -> Ending:
    if ends is None:
        return Ending(name=name, state="damaged", ends=None, remedy="Restore it from a backup of the fleet directory")
    state: State = "over" if ends <= now else "soon" if ends <= now + SOON[name] * DAY else "ok"
    return Ending(name=name, state=state, ends=ends, remedy="" if state == "ok" else REMEDIES[name])
