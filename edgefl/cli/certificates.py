"""`edgefl certificates`: what in the fleet ends when, and new pairs for its broker and its server."""

import datetime as dt
import shlex
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from edgefl.cli.options import fleet_option, json_option
from edgefl.cli.text import printable
from edgefl.errors import InputError

if TYPE_CHECKING:
    from edgefl.server.endings import Ending
    from edgefl.server.pairs import Owner

EXIT_OPEN = 4
"""Something is left to do on this or another machine."""
DAY = 86400.0


@click.group()
def certificates() -> None:
    """What in the fleet ends when: list it, renew the broker's and the server's certificates."""


@certificates.command("ls")
@json_option
@fleet_option
def list_endings(as_json: bool, fleet_path: Path) -> None:
    """When certificates, the list of revoked ones and signed metadata end. Devices stand here only shortly before."""
    from edgefl.server.endings import endings
    from edgefl.store.database import open_database
    from edgefl.store.fleet import Fleet

    fleet, now = Fleet.open(fleet_path), time.time()
    with closing(open_database(fleet.database)) as database:
        found = endings(fleet, database, now)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    for one in found:
        click.echo(printable(f"{one.name:<20}  {one.state:<7}  {_when(one.ends, now)}"))
    for line in remedies(found):
        click.echo(printable(line))


def remedies(found: "list[Ending]") -> list[str]:
    """What is to be done, a line for each thing that ends soon or is over."""
    said = {"soon": "ends soon", "over": "has ended", "damaged": "cannot be read"}
    return [f"to do: {one.name} {said[one.state]}. {one.remedy}." for one in found if one.state != "ok"]


@certificates.command("renew")
@click.argument("owners", metavar="[broker|server]...", type=click.Choice(["broker", "server"]), nargs=-1, required=True)
@click.option("--days", type=click.FloatRange(0.01, 3650), help="Life of the new certificate.  [default: as the old one's]")
@click.option("--reload", default="", metavar="COMMAND", help="Makes a broker reload that `edgefl broker` does not run.")
@json_option
@fleet_option
@click.pass_context
def renew(
    context: click.Context, owners: "tuple[Owner, ...]", days: float | None, reload: str, as_json: bool, fleet_path: Path
) -> None:
    """Give the broker or the server a new key and certificate while the fleet works, and prove that they are in use.

    The server's old certificate is revoked. The broker's new one also names the host in fleet.toml. Exit code 4 when a step is
    left open; the table says what to do.
    """
    from edgefl.server.replacing import renew_pair
    from edgefl.store.database import open_database
    from edgefl.store.fleet import Fleet

    fleet = Fleet.open(fleet_path)
    try:
        command = shlex.split(reload)
    except ValueError as error:
        raise InputError("--reload is no command", found=str(error), remedy="Close its quotes") from None
    with closing(open_database(fleet.database)) as database:
        results = [renew_pair(fleet, database, owner, days=days, reload=command) for owner in dict.fromkeys(owners)]
    if as_json:
        click.echo(msgspec.json.encode(results).decode())
    else:
        for result in results:
            click.echo(f"{result.owner}:")
            for step in result.steps:
                click.echo(printable(f"  {step.name:<7} {'yes' if step.done else 'no ':<3}  {step.text}"))
        for remedy in dict.fromkeys(step.remedy for result in results for step in result.steps if step.remedy):
            click.echo(printable(f"to do: {remedy}."))
    if not all(result.complete for result in results):
        context.exit(EXIT_OPEN)


def _when(ends: float | None, now: float) -> str:
    if ends is None:
        return "?"
    return f"{dt.datetime.fromtimestamp(ends, dt.UTC):%Y-%m-%d}, in {(ends - now) / DAY:.0f} days"
