"""`edgefl devices tag`, `untag` and `tags`: words on devices, to name groups of them in `edgefl rollout start --tag`."""

from contextlib import closing
from pathlib import Path

import click
import msgspec

from edgefl.cli.options import fleet_option, json_option


@click.command("tag")
@click.argument("device", metavar="ID")
@click.argument("tags", metavar="TAG...", nargs=-1, required=True)
@fleet_option
def tag_device(device: str, tags: tuple[str, ...], fleet_path: Path) -> None:
    """Put tags on a device."""
    _change(device, tags, fleet_path, on=True)


@click.command("untag")
@click.argument("device", metavar="ID")
@click.argument("tags", metavar="TAG...", nargs=-1, required=True)
@fleet_option
def untag_device(device: str, tags: tuple[str, ...], fleet_path: Path) -> None:
    """Take tags off a device."""
    _change(device, tags, fleet_path, on=False)


def _change(device: str, tags: tuple[str, ...], fleet_path: Path, *, on: bool) -> None:
    from edgefl.store.database import open_database, transaction
    from edgefl.store.fleet import Fleet
    from edgefl.store.registry import get_device
    from edgefl.store.tags import all_tags, tag, untag

    with closing(open_database(Fleet.open(fleet_path).database)) as database:
        with transaction(database):
            (tag if on else untag)(database, get_device(database, device).id, tags)
        now = all_tags(database).get(device, ())
    click.echo(f"{device}: {', '.join(now) or 'no tags'}")


@click.command("tags")
@json_option
@fleet_option
def list_tags(as_json: bool, fleet_path: Path) -> None:
    """List the tags of all devices that have any."""
    from edgefl.store.database import open_database
    from edgefl.store.fleet import Fleet
    from edgefl.store.tags import all_tags

    with closing(open_database(Fleet.open(fleet_path).database)) as database:
        found = all_tags(database)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    for device, tags in found.items():
        click.echo(f"{device}  {', '.join(tags)}")
    if not found:
        click.echo("no tags yet; put one on a device with `edgefl devices tag`")
