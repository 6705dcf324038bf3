"""`edgefl serve`: the server process."""

import secrets
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgefl.cli.options import fleet_option, log_json_option
from edgefl.cli.rate import rate

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgefl.link.address import BrokerAddress
    from edgefl.server.blocks import Rates
    from edgefl.server.claimline import ClaimLine
    from edgefl.server.renewal import RenewalDesk
    from edgefl.store.fleet import Fleet

BUSY_SECONDS = 5.0
"""How long the server waits for a database that a command holds; the fleet waits with it, and so does the connection."""


@click.command()
@click.option(
    "--rate",
    "everybody",
    type=rate,
    metavar="RATE",
    help="Most that blocks may take, to all devices together.  [default: no limit]",
)
@click.option(
    "--device-rate", type=rate, metavar="RATE", help="The same for each device that is served alone.  [default: no limit]"
)
@click.option(
    "--gather",
    type=click.FloatRange(0.0, 60.0),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="Most that a file waits for devices that are expected to want it, so that it is sent once for all.",
)
@fleet_option
@log_json_option
def serve(everybody: float | None, device_rate: float | None, gather: float, fleet_path: Path) -> None:
    """Run the server of a fleet until SIGTERM or Ctrl-C: announce versions, deliver blocks, run rounds.

    Rates are like 10MB/s or 64KB/s. How often a device may ask is always limited.
    """
    from edgefl.cli.process import log_to_stderr, stop_on_signals
    from edgefl.errors import FleetError
    from edgefl.server.blocks import Rates
    from edgefl.store.database import open_database
    from edgefl.store.fleet import Fleet
    from edgefl.store.lock import file_lock

    log_to_stderr()
    should_stop = stop_on_signals()
    fleet = Fleet.open(fleet_path)
    with (
        file_lock(fleet.path / "serve.lock", wait=False) as alone,
        closing(open_database(fleet.database, busy=BUSY_SECONDS)) as database,
    ):
        if not alone:  # the two would take the broker's one server connection from each other, for ever
            raise FleetError(
                f"the fleet {fleet_path} is being served already",
                remedy="Stop the other `edgefl serve` first; one server is enough for a fleet",
            )
        _serve(fleet, database, Rates(everybody, device_rate, gather), should_stop)


def _serve(fleet: "Fleet", database: sqlite3.Connection, rates: "Rates", should_stop: "Callable[[], bool]") -> None:
    """Connect and serve until told to stop. Raises FleetError, StoreError, LinkError."""
    from edgefl.errors import LinkError
    from edgefl.link.address import BrokerAddress
    from edgefl.link.paho import PahoLink
    from edgefl.names import SERVER
    from edgefl.server.keys import online_signer
    from edgefl.server.own_pair import OwnPair
    from edgefl.server.pairs import go_back, join_pairs
    from edgefl.server.service import Service
    from edgefl.store.blobs import BlobStore

    settings = fleet.settings
    join_pairs(fleet)
    address = BrokerAddress(settings.host, settings.port, fleet.root_certificate, fleet.server_certificate, fleet.server_key)
    link = PahoLink(address, SERVER, clean_session=False)
    claims, renewals = _credential_desks(fleet, database, address)
    blobs, signer = BlobStore(fleet.blobs), online_signer(fleet)
    pair = OwnPair(fleet, database, link, time.time, time.monotonic)
    service = Service(database, blobs, link, signer, rates=rates, claims=claims, renewals=renewals, pair=pair)
    try:
        link.connect()
    except LinkError:
        go_back(fleet, database, time.time())  # if it was for a new certificate: the next start has the one before
        raise
    click.echo(f"serving fleet {settings.name} at {address}")
    try:
        service.run(should_stop)
    finally:
        link.close()


def _credential_desks(fleet: "Fleet", database: sqlite3.Connection, broker: "BrokerAddress") -> tuple["ClaimLine", "RenewalDesk"]:
    """Who gives boards their first certificates, and who gives them the next. Raises FleetError, StoreError."""
    from edgefl.link.paho import PahoLink
    from edgefl.server.claimline import ClaimLine
    from edgefl.server.claims import ClaimDesk
    from edgefl.server.founding import authority_of
    from edgefl.server.renewal import RenewalDesk

    authority, days = authority_of(fleet), fleet.settings.device_days
    desk = ClaimDesk(database, authority, days, wall=time.time, clock=time.monotonic)
    address = replace(broker, port=fleet.settings.claim_server_port)
    # A client id that nobody can guess: whoever connected with the same one would throw the server out.
    name = secrets.token_hex(16)
    line = ClaimLine(database, desk, lambda: PahoLink(address, name), wall=time.time, clock=time.monotonic)
    return line, RenewalDesk(database, authority, days, time.time)
