"""`edgefl status`: the fleet at a glance."""

import time
from contextlib import closing
from pathlib import Path

import click
import msgspec

from edgefl.cli.options import fleet_option, json_option


@click.command()
@json_option
@fleet_option
def status(as_json: bool, fleet_path: Path) -> None:
    """The fleet at a glance: devices, versions, trainings, counters."""
    from edgefl.server.status import DeviceStatus, fleet_status
    from edgefl.store.database import open_database
    from edgefl.store.fleet import Fleet

    fleet = Fleet.open(fleet_path)
    with closing(open_database(fleet.database)) as database:
        now = fleet_status(database, fleet.settings.name)
    if as_json:
        click.echo(msgspec.json.encode(now).decode())
        return

    def line(device: DeviceStatus) -> str:
        presence = "revoked" if device.revoked else "online" if device.online else "offline" if device.seen else "never seen"
        ago = "" if device.seen is None else f"{time.time() - device.seen:.0f} s ago"
        doing = f"{device.step} round {device.round}" if device.round else device.step
        models = ", ".join(device.models) or "-"
        return f"{device.id:<16} {device.profile:<18} {presence:<10} {ago:<10} {models:<28} {doing} {device.error}"

    click.echo(f"fleet {now.fleet}: {len(now.devices)} devices, {sum(d.online for d in now.devices)} online")
    for device in now.devices:
        click.echo(line(device).rstrip())
    for training in now.trainings:
        closed = [r for r in training.rounds if not r.open]
        accuracy = next((f", accuracy {r.accuracy:.4f}" for r in reversed(closed) if r.accuracy is not None), "")
        up, down = sum(r.uplink_bytes for r in training.rounds), sum(r.downlink_bytes for r in training.rounds)
        click.echo(
            f"{training.model}@{training.version}: {training.state}, round {training.round} of {training.last_round}"
            f"{accuracy}, {up} B up, {down} B down"
        )
    for name, value in now.counters.items():
        click.echo(f"{name}: {value}")
