"""`edgefl serve`: the server process."""

from contextlib import closing
from pathlib import Path

import click

from edgefl.cli.options import fleet_option


@click.command()
@fleet_option
def serve(fleet_path: Path) -> None:
    """Run the server of a fleet until SIGTERM or Ctrl-C: announce versions, deliver blocks, run rounds."""
    from edgefl.cli.process import log_to_stderr, stop_on_signals
    from edgefl.identity.signing import Signer
    from edgefl.link.address import BrokerAddress
    from edgefl.link.paho import PahoLink
    from edgefl.names import SERVER
    from edgefl.server.service import Service
    from edgefl.store.blobs import BlobStore
    from edgefl.store.database import open_database
    from edgefl.store.fleet import Fleet

    log_to_stderr()
    should_stop = stop_on_signals()
    fleet = Fleet.open(fleet_path)
    signer = Signer.from_pem(fleet.online_key.read_bytes())
    address = BrokerAddress(
        fleet.settings.host, fleet.settings.port, fleet.root_certificate, fleet.server_certificate, fleet.server_key
    )
    with closing(open_database(fleet.database)) as database:
        link = PahoLink(address, SERVER, clean_session=False)
        service = Service(database, BlobStore(fleet.blobs), link, signer)
        link.connect()
        click.echo(f"serving fleet {fleet.settings.name} at {address}")
        try:
            service.run(should_stop)
        finally:
            link.close()
