"""`edgefl devices revoke`: one command, and a table that says what is proved."""

import shlex
from contextlib import closing
from pathlib import Path

import click
import msgspec

from edgefl.cli.options import fleet_option, json_option
from edgefl.cli.text import printable
from edgefl.errors import InputError

EXIT_OPEN = 4
"""Something is left to do on this or another machine."""


@click.command("revoke")
@click.argument("device", metavar="ID")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the audit.")
@click.option("--reload", default="", metavar="COMMAND", help="Makes a broker reload that `edgefl broker` does not run.")
@json_option
@fleet_option
@click.pass_context
def revoke(context: click.Context, device: str, reason: str, reload: str, as_json: bool, fleet_path: Path) -> None:
    """Shut a device out at once and for ever: registry, list of revoked certificates, broker, running session.

    Run it again to prove again. Exit code 4 when a step is left open; the table says what to do.
    """
    from edgefl.server.revoke import revoke_device
    from edgefl.store.database import open_database
    from edgefl.store.fleet import Fleet

    fleet = Fleet.open(fleet_path)
    try:
        command = shlex.split(reload)
    except ValueError as error:
        raise InputError("--reload is no command", found=str(error), remedy="Close its quotes") from None
    with closing(open_database(fleet.database)) as database:
        result = revoke_device(fleet, database, device, reason, reload=command)
    if as_json:
        click.echo(msgspec.json.encode(result).decode())
    else:
        for step in result.steps:
            click.echo(printable(f"{step.name:<9} {'yes' if step.done else 'no ':<3}  {step.text}"))
        for remedy in dict.fromkeys(step.remedy for step in result.steps if step.remedy):
            click.echo(printable(f"to do: {remedy}."))
    if not result.complete:
        context.exit(EXIT_OPEN)
