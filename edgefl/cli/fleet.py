"""`edgefl init`, `edgefl provision`, `edgefl devices`: the fleet directory and who belongs to it."""

import datetime as dt
from contextlib import closing
from pathlib import Path

import click
import msgspec

from edgefl.cli.options import fleet_option, json_option
from edgefl.errors import InputError
from edgefl.names import is_id
from edgefl.store.registry import Device


@click.command()
@click.argument("path", metavar="FLEET", type=click.Path(path_type=Path))
@click.option("--name", help="Stands in every certificate.  [default: the directory's name]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where devices reach the broker.")
@click.option("--port", type=click.IntRange(1, 65535), default=8883, show_default=True, help="The broker's port.")
def init(path: Path, name: str | None, host: str, port: int) -> None:
    """Create a fleet directory: certificate authority, signing keys, registry. Never overwrites one."""
    from edgefl.server.founding import create_fleet

    chosen = name or path.resolve().name
    if name is None and not is_id(chosen):
        raise InputError(f"the directory's name {chosen!r} cannot be the fleet's", remedy="Give one with --name")
    fleet = create_fleet(path, name=chosen, host=host, port=port)
    click.echo(f"created fleet {fleet.settings.name} in {path} (broker {host}:{port})")
    click.echo(f"keep {path / 'ca' / 'root.key'} offline: nothing but a new intermediate authority needs it")


@click.command()
@click.argument("device", metavar="ID")
@click.option("--profile", required=True, help="What the board can hold; see firmware_profiles/.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Receives the bundle OUT/ID.")
@click.option("--count", type=int, default=1, show_default=True, help="Make ID-01, ID-02, ... instead of one device.")
@click.option("--data", default="", metavar="SOURCE", help="Where the board's examples come from.")
@fleet_option
def provision(device: str, profile: str, out: Path, count: int, data: str, fleet_path: Path) -> None:
    """Make a bundle that turns a board into a device of the fleet: keys, configuration, unit, installer."""
    from edgefl.server.provision import numbered
    from edgefl.server.provision import provision as make
    from edgefl.store.fleet import Fleet

    for made in make(Fleet.open(fleet_path), numbered(device, count), profile, out, data=data):
        click.echo(f"{made.device.id}  {made.device.profile}  {made.bundle}")
    click.echo("copy each bundle to its board and run install.sh in it as root; it holds the device's private key")


@click.group()
def devices() -> None:
    """List and show the fleet's devices."""


@devices.command("ls")
@json_option
@fleet_option
def list_all(as_json: bool, fleet_path: Path) -> None:
    """List all devices."""
    from edgefl.store.database import open_database
    from edgefl.store.fleet import Fleet
    from edgefl.store.registry import list_devices

    with closing(open_database(Fleet.open(fleet_path).database)) as database:
        rows = list_devices(database)
    if as_json:
        click.echo(msgspec.json.encode(rows).decode())
        return
    if not rows:
        click.echo("no devices yet; make one with `edgefl provision`")
        return
    width = max(len(row.id) for row in rows)
    for row in rows:
        click.echo(f"{row.id:<{width}}  {row.profile:<18}  {_state(row):<8}  {_date(row.created)}")


@devices.command("show")
@click.argument("device", metavar="ID")
@json_option
@fleet_option
def show(device: str, as_json: bool, fleet_path: Path) -> None:
    """Show one device."""
    from edgefl.store.database import open_database
    from edgefl.store.fleet import Fleet
    from edgefl.store.registry import get_device

    with closing(open_database(Fleet.open(fleet_path).database)) as database:
        row = get_device(database, device)
    if as_json:
        click.echo(msgspec.json.encode(row).decode())
        return
    for key, value in (
        ("id", row.id),
        ("profile", row.profile),
        ("state", _state(row)),
        ("provisioned", _date(row.created)),
        ("certificate", row.certificate),
    ):
        click.echo(f"{key:<12} {value}")


def _state(device: Device) -> str:
    return "valid" if device.revoked is None else "revoked"


def _date(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
