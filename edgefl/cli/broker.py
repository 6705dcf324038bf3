"""`edgefl broker`: the fleet's broker in the foreground, Mosquitto or the embedded one."""

import asyncio
import signal
from dataclasses import replace
from pathlib import Path
from types import FrameType

import click

from edgefl.brokers.claims import ClaimBroker, refuse_embedded
from edgefl.brokers.embedded import serve
from edgefl.brokers.listener import Listener
from edgefl.brokers.mosquitto import Mosquitto, find_mosquitto
from edgefl.cli.options import fleet_option
from edgefl.errors import BrokerError
from edgefl.store.fleet import Fleet

LOOK_EVERY = 1.0
"""Seconds between two looks whether the claim broker still runs."""


def listener_of(fleet: Fleet, *, port: int | None = None, bind: str = "127.0.0.1") -> Listener:
    """Where this fleet's broker listens, with its certificates."""
    return Listener(
        fleet.broker, fleet.root_certificate, fleet.broker_certificate, fleet.broker_key, port or fleet.settings.port, bind
    )


def claim_listener(fleet: Fleet, *, bind: str = "127.0.0.1") -> Listener:
    """Where this fleet's claim broker listens, with the same certificates."""
    return replace(listener_of(fleet, port=fleet.settings.claim_port, bind=bind), directory=fleet.broker / "claims")


@click.command()
@click.option("--broker", "kind", type=click.Choice(["auto", "mosquitto", "embedded"]), default="auto", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), help="Listen here instead of on the fleet's port.")
@click.option("--bind", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--claims", is_flag=True, help="Also let boards without a certificate claim one, on the fleet's claim port.")
@fleet_option
def broker(kind: str, port: int | None, bind: str, claims: bool, fleet_path: Path) -> None:
    """Run the fleet's broker until Ctrl-C or SIGTERM. auto takes Mosquitto when it is installed."""
    fleet = Fleet.open(fleet_path)
    listener = listener_of(fleet, port=port, bind=bind)
    if claims and (kind == "embedded" or (kind == "auto" and not find_mosquitto())):
        refuse_embedded()
    if kind == "auto":
        kind = "mosquitto" if find_mosquitto() else "embedded"
    if kind == "mosquitto":
        _run_mosquitto(listener, claim_listener(fleet, bind=bind) if claims else None)
    else:
        asyncio.run(_run_embedded(listener))


def _announce(listener: Listener, kind: str) -> None:
    """The line that others wait for; `click.echo` flushes it."""
    click.echo(f"broker ready on {listener.bind}:{listener.port} ({kind})")


class _Stopped(Exception):  # noqa: N818 - a request, not an error
    """Somebody asked us to end."""


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signal module's signature
    raise _Stopped


def _run_mosquitto(listener: Listener, claims: Listener | None) -> None:
    """Start it, wait for it or for a signal, and take it down with us; the claim broker with it, if there is one."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        with Mosquitto(listener) as mosquitto:
            if claims is None:
                _announce(listener, "mosquitto")
                mosquitto.wait()
            else:
                with ClaimBroker(claims) as claiming:
                    _announce(listener, "mosquitto")
                    click.echo(f"claims welcome on {claims.bind}:{claims.port}")
                    _watch(mosquitto, claiming)
            mosquitto.check()
    except _Stopped:
        return


def _watch(mosquitto: Mosquitto, claiming: Mosquitto) -> None:
    """Wait until the fleet's broker ends. That the claim broker ends is told, and no reason to stop the fleet's."""
    while not mosquitto.wait(LOOK_EVERY):
        try:
            claiming.check()
        except BrokerError as error:
            click.echo(f"error: no more claims: {error}", err=True)
            mosquitto.wait()
            return


async def _run_embedded(listener: Listener) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await serve(listener, stopped, lambda: _announce(listener, "embedded"))
