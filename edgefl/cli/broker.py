"""`edgefl broker`: the fleet's broker in the foreground, Mosquitto or the embedded one; and what concerns a broker elsewhere."""

import asyncio
import os
import signal
import time
from contextlib import closing, nullcontext
from pathlib import Path
from types import FrameType

import click

from edgefl.brokers.embedded import serve
from edgefl.brokers.listener import Listener
from edgefl.brokers.mosquitto import Mosquitto, find_mosquitto, write_configuration
from edgefl.brokers.revoked import RENEW_SECONDS, crl_path
from edgefl.brokers.running import announce_process, only_broker
from edgefl.cli.check import check
from edgefl.cli.claim_broker import claim_broker
from edgefl.cli.options import fleet_option
from edgefl.errors import EdgeflError
from edgefl.server.founding import authority_of
from edgefl.server.pairs import held, is_due, join_pairs, note_use, renew
from edgefl.server.revoke import refresh_access, refresh_list
from edgefl.store.database import open_database
from edgefl.store.fleet import Fleet
from edgefl.store.revocations import revoked_devices


def listener_of(fleet: Fleet, *, port: int | None = None, bind: str = "127.0.0.1") -> Listener:
    """Where this fleet's broker listens, with its pair in one file and a freshly signed list of revoked certificates.

    Raises:
        FleetError: the fleet's authority is damaged.
        StoreError: the database cannot be read, or the list cannot be written.
    """
    join_pairs(fleet)
    with closing(open_database(fleet.database)) as database:
        refresh_list(fleet, database, authority_of(fleet), time.time())
        revoked = revoked_devices(database)
    return Listener(
        fleet.broker,
        fleet.root_certificate,
        fleet.broker_certificate,
        fleet.broker_key,
        port or fleet.settings.port,
        bind,
        crl_path(fleet.broker),
        revoked,
    )


@click.group(invoke_without_command=True)
@click.option("--broker", "kind", type=click.Choice(["auto", "mosquitto", "embedded"]), default="auto", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), help="Listen here instead of on the fleet's port.")
@click.option("--bind", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--claims", is_flag=True, help="Also let boards without a certificate claim one, on the fleet's claim port.")
@fleet_option
@click.pass_context
def broker(context: click.Context, kind: str, port: int | None, bind: str, claims: bool, fleet_path: Path) -> None:
    """Run the fleet's broker until Ctrl-C or SIGTERM. auto takes Mosquitto when it is installed."""
    if context.invoked_subcommand is not None:
        return
    fleet = Fleet.open(fleet_path)
    if kind == "auto":
        kind = "mosquitto" if find_mosquitto() else "embedded"
    with only_broker(fleet.broker, kind):
        _fresh_pair(fleet)
        with claim_broker(fleet, kind, bind) if claims else nullcontext():
            listener = listener_of(fleet, port=port, bind=bind)
            if kind == "mosquitto":
                _run_mosquitto(fleet, listener)
            else:
                asyncio.run(_run_embedded(listener))


broker.add_command(check)


@broker.command()
@click.option("--port", type=click.IntRange(1, 65535), help="Listen here instead of on the fleet's port.")
@click.option("--bind", default="0.0.0.0", show_default=True, help="Address to listen on.")  # noqa: S104 - written down, not bound
@fleet_option
def configure(port: int | None, bind: str, fleet_path: Path) -> None:
    """Write the configuration and a fresh list of revoked certificates for a Mosquitto that something else runs."""
    fleet = Fleet.open(fleet_path)
    path = write_configuration(listener_of(fleet, port=port, bind=bind))
    click.echo(f"wrote {path}, and acl and crl.pem beside it")
    click.echo("let a running Mosquitto reload with SIGHUP; run this at least once a month, because the list has an end")


def _fresh_pair(fleet: Fleet) -> None:
    """Renew the broker's pair if the time has come. Raises FleetError or StoreError."""
    now = time.time()
    with closing(open_database(fleet.database)) as database:
        if is_due(held(fleet, "broker"), now):
            made = renew(fleet, database, "broker", now)
            note_use(fleet, database, "broker", now, made.serial)
            click.echo(f"renewed the broker's certificate; the new one is {made.serial}", err=True)


def _announce(listener: Listener, kind: str, pid: int) -> None:
    """Say it to other commands, and print the line that others wait for; `click.echo` flushes it."""
    announce_process(listener, kind, pid)
    click.echo(f"broker ready on {listener.bind}:{listener.port} ({kind})")


class _Stopped(Exception):  # noqa: N818 - a request, not an error
    """Somebody asked us to end."""


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signal module's signature
    raise _Stopped


def _run_mosquitto(fleet: Fleet, listener: Listener) -> None:
    """Start it, wait for it or for a signal, and take it down with us; sign a new list now and then."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        with Mosquitto(listener) as mosquitto:
            _announce(listener, "mosquitto", mosquitto.process.pid)
            while not mosquitto.wait(RENEW_SECONDS):
                _renew(fleet, mosquitto)
            mosquitto.check()
    except _Stopped:
        return


def _renew(fleet: Fleet, mosquitto: Mosquitto) -> None:
    """Give the broker a list with a new date, and a new pair in time; what fails is said and tried again tomorrow."""
    try:
        _fresh_pair(fleet)
        with closing(open_database(fleet.database)) as database:
            refresh_list(fleet, database, authority_of(fleet), time.time())
            refresh_access(fleet, database)
    except EdgeflError as error:
        click.echo(f"warning: the list of revoked certificates is not signed anew, nor a certificate renewed: {error}", err=True)
        return
    mosquitto.reload()


async def _run_embedded(listener: Listener) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await serve(listener, stopped, lambda: _announce(listener, "embedded", os.getpid()))
