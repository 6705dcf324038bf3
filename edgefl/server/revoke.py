"""Revoking a device everywhere at once, and proving it from the outside.

Model: four steps, each of which leaves the fleet safer than before, so that a failure in between needs nothing but the same
command again. *Registry*: the server hears the device no more. *List*: its certificates are in a newly signed list. *Broker*: it
has read that list. *Session*: the device's connection has ended and does not come back. The order matters: a session that is
ended before the broker has read the list is back in a second.

How it is proved: the device's key is not here, so two short-lived certificates in its name are made. The first is in the new list
and nowhere else: when the broker refuses it, the broker has read this very list. The second is not in the list; with it we take
the device's place, which ends its session and throws away what was queued for it (MQTT 3.1.1, section 3.1.4). We clear its
retained state, and stay for a while: a device that could still come in would take its place back. Why in this way stands in
docs/adr/0011-revocation.md.
"""

import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec

from edgefl.brokers.revoked import write_access, write_list
from edgefl.brokers.running import RunningBroker, running_broker
from edgefl.brokers.wallet import Wallet
from edgefl.errors import BrokerError
from edgefl.identity.authority import Authority, Identity
from edgefl.identity.crl import Crl
from edgefl.link.probe import Probe
from edgefl.server.founding import authority_of
from edgefl.store.audit import record
from edgefl.store.database import transaction
from edgefl.store.fleet import Fleet
from edgefl.store.lock import file_lock
from edgefl.store.revocations import revoke, revoked_devices, revoked_serials
from edgefl.wire.topics import state

RELOAD_SECONDS = 10.0
"""How long a broker may take to read its files again."""
COMMAND_SECONDS = 60.0
LOCK = "crl.lock"
HOLD_SECONDS = 1.5
"""How long the device's place is kept; a client that reconnects at once is back within it."""

StepName = Literal["registry", "list", "broker", "session", "pair", "server"]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a revocation or renewal: whether it is done, what was seen, and what is left to do."""

    name: StepName
    done: bool
    text: str
    remedy: str = ""


class Revocation(msgspec.Struct, frozen=True, kw_only=True):
    """What has become of a revocation; `complete` when every step is done."""

    device: str
    complete: bool
    steps: tuple[Step, ...]


def revoke_device(
    fleet: Fleet,
    database: sqlite3.Connection,
    device: str,
    reason: str = "",
    *,
    reload: Sequence[str] = (),
    wall: Callable[[], float] = time.time,
) -> Revocation:
    """Revoke a device and prove it; for one that is revoked already, do again what can be done again.

    Args:
        fleet: whose device it is.
        database: of the fleet.
        device: its id.
        reason: for the audit.
        reload: command that brings `FLEET/broker/crl.pem` and `acl` to a broker that is not ours and lets it read them.
        wall: seconds since 1970.

    Raises:
        FleetError: the fleet has no such device, or its authority is damaged.
        StoreError: the database or a file cannot be written. What was done before stays done.
    """
    first = revoke(database, device, reason, wall())
    authority = authority_of(fleet)
    listed, hidden = authority.probe(device), authority.probe(device)
    crl = refresh_list(fleet, database, authority, wall(), (int(listed.serial, 16),))
    missing = revoked_serials(database).keys() - crl.serials
    steps = [
        Step(name="registry", done=True, text="the server hears it no more" if first else "was revoked before"),
        Step(name="list", done=not missing, text=f"list {crl.number} names {len(crl.serials)} certificates"),
        *_at_broker(fleet, database, device, (listed, hidden), reload),
    ]
    with transaction(database):
        for step in steps[1:]:
            record(database, wall(), f"revocation: {step.name} {'done' if step.done else 'open'}", device, step.text)
    return Revocation(device=device, complete=all(step.done for step in steps), steps=tuple(steps))


def refresh_list(fleet: Fleet, database: sqlite3.Connection, authority: Authority, now: float, also: Iterable[int] = ()) -> Crl:
    """Sign the list of revoked certificates anew, from the registry as it is now; see `edgefl.brokers.revoked.write_list`.

    Two writers take turns: otherwise the slower one could put a list in place that does not know yet whom the faster revoked.
    """
    with file_lock(fleet.broker / LOCK):
        return write_list(fleet.broker, authority, revoked_serials(database), now, also)


def refresh_access(fleet: Fleet, database: sqlite3.Connection) -> None:
    """Write the access file anew, from the registry as it is now. Raises StoreError."""
    with file_lock(fleet.broker / LOCK):
        write_access(fleet.broker, revoked_devices(database))


def _at_broker(
    fleet: Fleet, database: sqlite3.Connection, device: str, identities: tuple[Identity, Identity], reload: Sequence[str]
) -> tuple[Step, Step]:
    """The steps `broker` and `session`; the first identity is in the new list, the second is not."""
    listed, hidden = identities
    running = running_broker(fleet.broker)
    host, port = (running.host, running.port) if running else (fleet.settings.host, fleet.settings.port)
    trouble = tell_broker(running, reload)
    with Wallet(host, port, fleet.root_certificate) as wallet:
        refused, words = _is_refused(wallet, device, listed, 0.0 if trouble else RELOAD_SECONDS)
        with Probe(wallet.address(hidden), device) as place:
            if not place.accepted:
                refresh_access(fleet, database)
                return _unreachable(fleet, f"{host}:{port}", place.reason)
            cleared = place.publish(state(device), b"", retain=True)
            refresh_access(fleet, database)  # only now: it forbids this device, and so us, to clear its state
            tell_broker(running, reload)
            lost = place.wait(HOLD_SECONDS, lambda: not place.alive)
    remedy = "" if refused else _remedy(running, reload)
    broker = Step(
        name="broker",
        done=refused,
        text=f"refuses a certificate of the new list ({words})" if refused else trouble or words,
        remedy=remedy,
    )
    if lost:
        text = "its place was taken from us: the broker still admits it"
    elif not refused:
        text = "ended, but it may come back until the broker has read the list"
    else:
        text = "ended, and nobody took its place back" + ("; its retained state is cleared" if cleared else "")
    return broker, Step(name="session", done=refused and not lost, text=text, remedy=remedy)


def tell_broker(running: RunningBroker | None, command: Sequence[str]) -> str:
    """Let the broker read its files again; why that is impossible, or nothing."""
    try:
        if command:
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=COMMAND_SECONDS)
        elif running is not None:
            running.reload()
        else:
            return "no `edgefl broker` of this fleet directory runs on this machine"
    except (OSError, subprocess.SubprocessError, BrokerError) as error:
        return f"the broker could not be told to reload ({error})"
    return ""


def _is_refused(wallet: Wallet, device: str, listed: Identity, seconds: float) -> tuple[bool, str]:
    """Whether the broker refuses the listed certificate before the time is over, and what it said."""
    address = wallet.address(listed)
    deadline = time.monotonic() + seconds
    while True:
        with Probe(address, device) as probe:
            if not probe.accepted:
                return True, probe.reason
        if time.monotonic() >= deadline:
            return False, "accepts a certificate of the new list: it has not read the list"
        time.sleep(0.1)


def _unreachable(fleet: Fleet, address: str, reason: str) -> tuple[Step, Step]:
    text = f"no answer from {address} that we could use ({reason})"
    remedy = f"Start the broker, or check that {fleet.path / 'fleet.toml'} names its address; then run this again"
    return Step(name="broker", done=False, text=text, remedy=remedy), Step(
        name="session", done=False, text="not known: the broker could not be asked", remedy=remedy
    )


def _remedy(running: RunningBroker | None, command: Sequence[str]) -> str:
    if running is not None and not command:
        return "Restart `edgefl broker`, which reads the list when it starts; then run this again"
    return (
        "Run this again with --reload and a command that brings crl.pem and acl of FLEET/broker to the broker "
        "and sends it SIGHUP, for example --reload 'systemctl reload mosquitto'; see broker/README.md"
    )
