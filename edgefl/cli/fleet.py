"""`edgefl init`, `edgefl devices`: the fleet directory and who belongs to it."""

import datetime as dt
import time
from contextlib import closing
from pathlib import Path

import click
import msgspec

from edgefl.cli.credentials import audit, rotate
from edgefl.cli.options import fleet_option, json_option
from edgefl.cli.revoke import revoke
from edgefl.cli.tags import list_tags, tag_device, untag_device
from edgefl.errors import InputError
from edgefl.names import is_id
from edgefl.store.registry import Device
from edgefl.store.standings import Standing


@click.command()
@click.argument("path", metavar="FLEET", type=click.Path(path_type=Path))
@click.option("--name", help="Stands in every certificate.  [default: the directory's name]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where devices reach the broker.")
@click.option("--port", type=click.IntRange(1, 65535), default=8883, show_default=True, help="The broker's port.")
@click.option("--root", type=click.Path(path_type=Path), metavar="DIR", help="Put the root's key here, not into the fleet.")
@click.option("--claim-port", type=click.IntRange(1, 65534), default=8884, show_default=True, help="Of `broker --claims`.")
def init(path: Path, name: str | None, host: str, port: int, claim_port: int, root: Path | None) -> None:
    """Create a fleet directory: certificate authority, signing keys, registry. Never overwrites one."""
    from edgefl.server.founding import create_fleet

    chosen = name or path.resolve().name
    if name is None and not is_id(chosen):
        raise InputError(f"the directory's name {chosen!r} cannot be the fleet's", remedy="Give one with --name")
    fleet = create_fleet(path, name=chosen, host=host, port=port, claim_port=claim_port, root=root)
    click.echo(f"created fleet {fleet.settings.name} in {path} (broker {host}:{port})")
    click.echo(f"keep {(root or path / 'ca') / 'root.key'} offline: nothing but a new intermediate authority needs it")
    click.echo(f"keep {(root or path / 'keys') / 'metadata-root.key'} offline: nothing but replacing a signing key needs it")


@click.group()
def devices() -> None:
    """List, show, exclude, reinstate and revoke the fleet's devices."""


devices.add_command(revoke)


for _command in (tag_device, untag_device, list_tags):
    devices.add_command(_command)


@devices.command("ls")
@json_option
@fleet_option
def list_all(as_json: bool, fleet_path: Path) -> None:
    """List all devices."""
    from edgefl.store.database import open_database
    from edgefl.store.fleet import Fleet
    from edgefl.store.registry import list_devices
    from edgefl.store.standings import standings

    with closing(open_database(Fleet.open(fleet_path).database)) as database:
        rows, known = list_devices(database), standings(database)
    if as_json:
        click.echo(msgspec.json.encode([_with_standing(row, known.get(row.id)) for row in rows]).decode())
        return
    if not rows:
        click.echo("no devices yet; make one with `edgefl provision`")
        return
    width = max(len(row.id) for row in rows)
    for row in rows:
        state, standing = _state(row, known.get(row.id)), known.get(row.id, Standing(row.id)).standing
        click.echo(f"{row.id:<{width}}  {row.profile:<18}  {state:<8}  {standing:.2f}  {_date(row.created)}")


@devices.command("show")
@click.argument("device", metavar="ID")
@json_option
@fleet_option
def show(device: str, as_json: bool, fleet_path: Path) -> None:
    """Show one device."""
    from edgefl.store.database import open_database
    from edgefl.store.fleet import Fleet
    from edgefl.store.registry import get_device
    from edgefl.store.standings import standings

    with closing(open_database(Fleet.open(fleet_path).database)) as database:
        row = get_device(database, device)
        known = standings(database).get(device)
    if as_json:
        click.echo(msgspec.json.encode(_with_standing(row, known)).decode())
        return
    for key, value in (
        ("id", row.id),
        ("profile", row.profile),
        ("state", _state(row, known)),
        ("standing", f"{(known or Standing(row.id)).standing:.2f}"),
        ("provisioned", _date(row.created)),
        ("certificate", row.certificate or "none yet"),
    ):
        click.echo(f"{key:<12} {value}")


@devices.command("exclude")
@click.argument("device", metavar="ID")
@fleet_option
def exclude_device(device: str, fleet_path: Path) -> None:
    """Take no more updates from a device; it keeps its models and is told why its updates are refused."""
    from edgefl.store.database import open_database
    from edgefl.store.fleet import Fleet
    from edgefl.store.registry import get_device
    from edgefl.store.standings import exclude

    with closing(open_database(Fleet.open(fleet_path).database)) as database:
        exclude(database, get_device(database, device).id, time.time())
    click.echo(f"{device} is excluded; bring it back with `edgefl devices reinstate {device}`")


@devices.command("reinstate")
@click.argument("device", metavar="ID")
@fleet_option
def reinstate_device(device: str, fleet_path: Path) -> None:
    """Let an excluded device take part again, with a clean record."""
    from edgefl.store.database import open_database
    from edgefl.store.fleet import Fleet
    from edgefl.store.registry import get_device
    from edgefl.store.standings import reinstate

    with closing(open_database(Fleet.open(fleet_path).database)) as database:
        reinstate(database, get_device(database, device).id)
    click.echo(f"{device} takes part again")


def _with_standing(device: Device, standing: Standing | None) -> dict[str, object]:
    """What `--json` tells of a device."""
    known = standing or Standing(device.id)
    return {**msgspec.to_builtins(device), "standing": known.standing, "excluded": known.excluded, "excluded_by": known.by}


def _state(device: Device, standing: Standing | None) -> str:
    if device.revoked is not None:
        return "revoked"
    if not device.certificate:
        return "to claim"
    return "excluded" if standing is not None and standing.excluded is not None else "valid"


def _date(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M UTC")


devices.add_command(rotate)
devices.add_command(audit)
