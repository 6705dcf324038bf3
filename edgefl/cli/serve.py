"""`edgefl serve`: the server process."""

from contextlib import closing
from pathlib import Path

import click

from edgefl.cli.options import fleet_option
from edgefl.cli.rate import rate

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
@fleet_option
def serve(everybody: float | None, device_rate: float | None, fleet_path: Path) -> None:
    """Run the server of a fleet until SIGTERM or Ctrl-C: announce versions, deliver blocks, run rounds.

    Rates are like 10MB/s or 64KB/s. How often a device may ask is always limited.
    """
    from edgefl.cli.process import log_to_stderr, stop_on_signals
    from edgefl.errors import FleetError
    from edgefl.link.address import BrokerAddress
    from edgefl.link.paho import PahoLink
    from edgefl.names import SERVER
    from edgefl.server.blocks import Rates
    from edgefl.server.founding import online_signer
    from edgefl.server.service import Service
    from edgefl.store.blobs import BlobStore
    from edgefl.store.database import open_database
    from edgefl.store.fleet import Fleet
    from edgefl.store.lock import file_lock

    log_to_stderr()
    should_stop = stop_on_signals()
    fleet = Fleet.open(fleet_path)
    signer = online_signer(fleet)
    address = BrokerAddress(
        fleet.settings.host, fleet.settings.port, fleet.root_certificate, fleet.server_certificate, fleet.server_key
    )
    with (
        file_lock(fleet.path / "serve.lock", wait=False) as alone,
        closing(open_database(fleet.database, busy=BUSY_SECONDS)) as database,
    ):
        if not alone:  # the two would take the broker's one server connection from each other, for ever
            raise FleetError(
                f"the fleet {fleet_path} is being served already",
                remedy="Stop the other `edgefl serve` first; one server is enough for a fleet",
            )
        link = PahoLink(address, SERVER, clean_session=False)
        service = Service(database, BlobStore(fleet.blobs), link, signer, rates=Rates(everybody, device_rate))
        link.connect()
        click.echo(f"serving fleet {fleet.settings.name} at {address}")
        try:
            service.run(should_stop)
        finally:
            link.close()
