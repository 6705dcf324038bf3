"""`edgefl certificates renew`: a new pair for the broker or the server, in use and proved, while the fleet works.

Model: steps like those of a revocation (`server.revoke`), each of which may be repeated. *Pair*: the new one is in place.
*Broker*, for its pair: a handshake shows the new certificate. *Server*, for its pair: the running server has connected with it,
or none runs. *List*: the server's old certificate is in it. *Broker*, after that: it refuses the old certificate.
"""

import sqlite3
import time
from collections.abc import Callable, Sequence

import msgspec

from edgefl.brokers.handshake import is_refused, shown_serial
from edgefl.brokers.running import RunningBroker, running_broker
from edgefl.brokers.wallet import Wallet
from edgefl.errors import FleetError, LinkError
from edgefl.identity.authority import Identity
from edgefl.identity.validity import Validity
from edgefl.names import OBSERVER, SERVER
from edgefl.server.founding import authority_of
from edgefl.server.pairs import Owner, held, note_use, renew
from edgefl.server.revoke import Step, refresh_list, tell_broker
from edgefl.store.atomic import read_file
from edgefl.store.credentials import certificates_of
from edgefl.store.fleet import Fleet
from edgefl.store.lock import file_lock

RELOAD_SECONDS, SERVER_SECONDS = 10.0, 30.0
"""How long a broker may take to read its files again, and a server to connect with a new pair."""
DAY = 86400.0


class Renewal(msgspec.Struct, frozen=True, kw_only=True):
    """What has become of a renewal; `complete` when every step is done."""

    owner: str
    complete: bool
    serial: str
    ends: float
    steps: tuple[Step, ...]


def renew_pair(
    fleet: Fleet,
    database: sqlite3.Connection,
    owner: Owner,
    *,
    days: float | None = None,
    reload: Sequence[str] = (),
    wall: Callable[[], float] = time.time,
) -> Renewal:
    """Renew a pair, let it be used, and prove it.

    Args:
        fleet: whose.
        database: of the fleet.
        owner: of the pair.
        days: of the new certificate's life; as long as the old one's if not given.
        reload: command that brings `FLEET/keys/broker.pem` and `FLEET/broker/crl.pem` to a broker that is not ours and lets it
            read them.
        wall: seconds since 1970.

    Raises:
        FleetError: the authority or the old certificate is damaged.
        StoreError: a file or the database cannot be written. What was done before stays done.
    """
    before = _copy(fleet) if owner == "server" else None
    made = renew(fleet, database, owner, wall(), days)
    left = (made.ends - wall()) / DAY
    names = f", names {', '.join(made.hosts)}" if owner == "broker" else ""
    steps = [Step(name="pair", done=True, text=f"certificate {made.serial} ends in {left:.0f} days{names}")]
    if owner == "broker":
        steps.append(_broker_shows(fleet, database, made, reload, wall))
    else:
        steps += _server_uses(fleet, database, made, before, reload, wall)
    return Renewal(owner=owner, complete=all(step.done for step in steps), serial=made.serial, ends=made.ends, steps=tuple(steps))


def _broker_shows(
    fleet: Fleet, database: sqlite3.Connection, made: Validity, reload: Sequence[str], wall: Callable[[], float]
) -> Step:
    running = running_broker(fleet.broker)
    trouble = tell_broker(running, reload)
    with Wallet(*_place(fleet, running), fleet.root_certificate) as wallet:
        address = wallet.address(authority_of(fleet).probe(OBSERVER))
        done, text = _until(lambda: shown_serial(address) == made.serial, 0.0 if trouble else RELOAD_SECONDS)
    if done:
        note_use(fleet, database, "broker", wall(), made.serial)
        return Step(name="broker", done=True, text=f"{address} shows it; connections were kept")
    return Step(
        name="broker", done=False, text=text or trouble or f"{address} shows another certificate", remedy=_remedy(running)
    )


def _server_uses(
    fleet: Fleet,
    database: sqlite3.Connection,
    made: Validity,
    before: Identity | None,
    reload: Sequence[str],
    wall: Callable[[], float],
) -> list[Step]:
    """The steps `server`, `list` and `broker`."""
    with file_lock(fleet.path / "serve.lock", wait=False) as nobody:
        if nobody:
            note_use(fleet, database, "server", wall(), made.serial)
    used, _ = _until(lambda: _is_active(database, made.serial), SERVER_SECONDS)
    if not used:
        remedy = "Look into the log of `edgefl serve`; it goes back to the old certificate after 90 s without a connection"
        return [Step(name="server", done=False, text="has not connected with it yet", remedy=remedy)]
    crl = refresh_list(fleet, database, authority_of(fleet), wall())
    text = "none runs now; the next one uses it" if nobody else "has connected with it"
    steps = [
        Step(name="server", done=True, text=text),
        Step(name="list", done=True, text=f"list {crl.number} names {len(crl.serials)} certificates"),
    ]
    return [*steps, _old_is_refused(fleet, before, reload)] if before is not None else steps


def _old_is_refused(fleet: Fleet, before: Identity, reload: Sequence[str]) -> Step:
    running = running_broker(fleet.broker)
    trouble = tell_broker(running, reload)
    with Wallet(*_place(fleet, running), fleet.root_certificate) as wallet:
        address = wallet.address(before)
        done, text = _until(lambda: is_refused(address), 0.0 if trouble else RELOAD_SECONDS)
    if done:
        return Step(name="broker", done=True, text="refuses the old certificate")
    return Step(name="broker", done=False, text=text or trouble or "still accepts the old certificate", remedy=_remedy(running))


def _until(happened: Callable[[], bool], seconds: float) -> tuple[bool, str]:
    """Whether it has happened before the time is over, and what stood in its way."""
    deadline, text = time.monotonic() + seconds, ""
    while True:
        try:
            if happened():
                return True, ""
            text = ""
        except LinkError as error:
            text = f"{error.problem} ({error.found})"
        if time.monotonic() >= deadline:
            return False, text
        time.sleep(0.1)


def _is_active(database: sqlite3.Connection, serial: str) -> bool:
    return any(one.serial == serial and one.state == "active" for one in certificates_of(database, SERVER))


def _copy(fleet: Fleet) -> Identity | None:
    """The server's pair as it is now, to see later that it opens nothing; None if it is damaged."""
    try:
        return Identity(read_file(fleet.server_key), read_file(fleet.server_certificate), held(fleet, "server").serial)
    except FleetError:
        return None


def _place(fleet: Fleet, running: RunningBroker | None) -> tuple[str, int]:
    return (running.host, running.port) if running else (fleet.settings.host, fleet.settings.port)


def _remedy(running: RunningBroker | None) -> str:
    if running is not None:
        return "Restart `edgefl broker`, which reads everything when it starts"
    return (
        "Start `edgefl broker`; or bring FLEET/keys/broker.pem and FLEET/broker/crl.pem to the broker elsewhere and let it read "
        "them, by hand or with --reload; see broker/README.md"
    )
