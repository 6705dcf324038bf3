"""`edgefl devices rotate` and `edgefl devices audit`: certificates that change, and what has happened to them."""

import datetime as dt
import time
from contextlib import closing
from pathlib import Path

import click
import msgspec

from edgefl.cli.options import fleet_option, json_option
from edgefl.cli.text import printable
from edgefl.errors import FleetError


@click.command()
@click.argument("device", metavar="ID")
@fleet_option
def rotate(device: str, fleet_path: Path) -> None:
    """Let a device change its key and certificate now, or as soon as it is there."""
    from edgefl.store.credentials import ask_rotation
    from edgefl.store.database import open_database, transaction
    from edgefl.store.fleet import Fleet
    from edgefl.store.registry import get_device

    with closing(open_database(Fleet.open(fleet_path).database)) as database, transaction(database):
        row = get_device(database, device)
        if row.revoked is not None or not row.certificate:
            state = "was revoked" if row.revoked is not None else "has not claimed a certificate yet"
            raise FleetError(f"device {device!r} {state}, there is nothing to rotate", remedy="See `edgefl devices ls`")
        ask_rotation(database, device, time.time())
    click.echo(f"{device} will change its certificate when it is connected; see `edgefl devices audit {device}`")


@click.command()
@click.argument("device", metavar="[ID]", required=False)
@json_option
@fleet_option
def audit(device: str | None, as_json: bool, fleet_path: Path) -> None:
    """Show what has happened to the credentials of a device, or of all; oldest first."""
    from edgefl.store.audit import events
    from edgefl.store.database import open_database
    from edgefl.store.fleet import Fleet

    with closing(open_database(Fleet.open(fleet_path).database)) as database:
        found = events(database, device)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    if not found:
        click.echo("nothing has happened yet")
    for event in found:
        at = dt.datetime.fromtimestamp(event.at, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
        click.echo(f"{at}  {event.event:<20}  {event.device:<16}  {printable(event.detail)}")
