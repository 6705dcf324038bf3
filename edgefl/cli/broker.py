"""`edgefl broker`: the fleet's broker in the foreground, Mosquitto or the embedded one."""

import asyncio
import signal
from contextlib import nullcontext
from pathlib import Path
from types import FrameType

import click

from edgefl.brokers.embedded import serve
from edgefl.brokers.listener import Listener
from edgefl.brokers.mosquitto import Mosquitto, find_mosquitto
from edgefl.cli.claim_broker import claim_broker
from edgefl.cli.options import fleet_option
from edgefl.store.fleet import Fleet


def listener_of(fleet: Fleet, *, port: int | None = None, bind: str = "127.0.0.1") -> Listener:
    """Where this fleet's broker listens, with its certificates."""
    return Listener(
        fleet.broker, fleet.root_certificate, fleet.broker_certificate, fleet.broker_key, port or fleet.settings.port, bind
    )


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
    if kind == "auto":
        kind = "mosquitto" if find_mosquitto() else "embedded"
    with claim_broker(fleet, kind, bind) if claims else nullcontext():
        if kind == "mosquitto":
            _run_mosquitto(listener)
        else:
            asyncio.run(_run_embedded(listener))


def _announce(listener: Listener, kind: str) -> None:
    """The line that others wait for; `click.echo` flushes it."""
    click.echo(f"broker ready on {listener.bind}:{listener.port} ({kind})")


class _Stopped(Exception):  # noqa: N818 - a request, not an error
    """Somebody asked us to end."""


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signal module's signature
    raise _Stopped


def _run_mosquitto(listener: Listener) -> None:
    """Start it, wait for it or for a signal, and take it down with us."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        with Mosquitto(listener) as mosquitto:
            _announce(listener, "mosquitto")
            mosquitto.wait()
            mosquitto.check()
    except _Stopped:
        return


async def _run_embedded(listener: Listener) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await serve(listener, stopped, lambda: _announce(listener, "embedded"))
