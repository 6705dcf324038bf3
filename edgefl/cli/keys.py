"""`edgefl keys`: the signing keys of the fleet's metadata."""

import datetime as dt
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from edgefl.cli.options import fleet_option, json_option

if TYPE_CHECKING:
    from edgefl.server.keys import Role

places_option = click.option(
    "--keys",
    "places",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Directory with keys, such as a USB stick; may be repeated.",
)


@click.group()
def keys() -> None:
    """Who may sign what: list the fleet's signing keys, replace them."""


@keys.command("ls")
@places_option
@json_option
@fleet_option
def list_roles(places: tuple[Path, ...], as_json: bool, fleet_path: Path) -> None:
    """Which keys speak for each role, how many must sign, and until when their word is good."""
    from edgefl.server.keys import roles
    from edgefl.store.fleet import Fleet

    found = roles(Fleet.open(fleet_path), places)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    click.echo(f"{'role':<8}  {'signs':<7}  {'until':<10}  keys (* is here)")
    for role in found:
        until = dt.datetime.fromtimestamp(role.expires, dt.UTC).strftime("%Y-%m-%d")
        shown = ", ".join(hint + ("*" if hint in role.here else "") for hint in role.keys)
        click.echo(f"{role.role:<8}  {f'{role.threshold} of {len(role.keys)}':<7}  {until:<10}  {shown}")


@keys.command("rotate")
@click.argument("role", type=click.Choice(["online", "release", "root"]))
@click.option("--count", type=click.IntRange(1, 20), default=1, show_default=True, help="How many new keys.")
@click.option("--threshold", type=click.IntRange(1, 20), default=1, show_default=True, help="How many of them must sign.")
@places_option
@fleet_option
def rotate_role(role: "Role", count: int, threshold: int, places: tuple[Path, ...], fleet_path: Path) -> None:
    """Let new keys speak for a ROLE instead of the ones that do now; the old ones are worth nothing from then on.

    Needs the root's keys. New root keys are written into the first directory of --keys, others into the fleet directory.
    """
    from edgefl.server.keys import rotate
    from edgefl.store.fleet import Fleet

    for path in rotate(Fleet.open(fleet_path), role, places, time.time(), count=count, threshold=threshold):
        click.echo(f"made {path}")
    click.echo("a running server announces the new root now; devices follow it by themselves, also after months")
    if role == "online":
        click.echo("restart `edgefl serve`: it signs with the old key until then")
