"""`edgefl broker check`: look at a running broker from outside."""

from contextlib import closing
from pathlib import Path

import click
import msgspec

from edgefl.cli.options import fleet_option, json_option
from edgefl.cli.text import printable

EXIT_FAILED = 4


@click.command("check")
@click.option("--host", help="Where devices reach the broker.  [default: the fleet's]")
@click.option("--port", type=click.IntRange(1, 65535), help="Its port.  [default: the running broker's, or the fleet's]")
@json_option
@fleet_option
@click.pass_context
def check(context: click.Context, host: str | None, port: int | None, as_json: bool, fleet_path: Path) -> None:
    """Attack a running broker from outside, and say what it refuses, lets through and keeps.

    Uses certificates made for the occasion, in names that no device has. Exit code 4 when a check fails.
    """
    from edgefl.brokers.checks.run import check_broker
    from edgefl.brokers.checks.scene import Scene
    from edgefl.brokers.running import running_broker
    from edgefl.brokers.wallet import Wallet
    from edgefl.server.founding import authority_of
    from edgefl.store.database import open_database
    from edgefl.store.fleet import Fleet
    from edgefl.store.revocations import revoked_serials

    fleet = Fleet.open(fleet_path)
    running = running_broker(fleet.broker) if port is None else None
    with closing(open_database(fleet.database)) as database:
        revoked = revoked_serials(database)
    host, port = host or fleet.settings.host, port or (running.port if running else fleet.settings.port)
    findings = []
    with Wallet(host, port, fleet.root_certificate) as wallet:
        for finding in check_broker(Scene(host, port, authority_of(fleet), fleet.broker, wallet), revoked):
            findings.append(finding)
            if not as_json:
                click.echo(printable(f"{finding.name:<21} {finding.state:<12} {finding.text}"))
                if finding.remedy:
                    click.echo(printable(f"{'':<21} to do: {finding.remedy}."))
    if as_json:
        click.echo(msgspec.json.encode(findings).decode())
    if any(finding.state == "failed" for finding in findings):
        context.exit(EXIT_FAILED)
