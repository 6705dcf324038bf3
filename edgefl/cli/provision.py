"""`edgefl provision`: boards become devices, by a ready bundle or by a claim, one or a whole file of them."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgefl.cli.options import fleet_option
from edgefl.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgefl.server.enrolment import Order, Provisioned

SECONDS = {"m": 60, "h": 3600, "d": 86400}
LONGEST_CLAIM = 30 * 86400


@click.command()
@click.argument("device", metavar="[ID]", required=False)
@click.option("--profile", help="What the board can hold; see firmware_profiles/.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Receives the bundle OUT/ID.")
@click.option("--count", type=int, default=1, show_default=True, help="Make ID-01, ID-02, ... instead of one device.")
@click.option("--from", "batch", type=click.Path(path_type=Path, dir_okay=False), help="A CSV file: id,profile[,data,tags].")
@click.option("--data", default="", metavar="SOURCE", help="Where the board's examples come from.")
@click.option("--claim", is_flag=True, help="No key in the bundle: the board makes its own and asks with a one-time token.")
@click.option("--expires", default="24h", show_default=True, metavar="TIME", help="How long a claim is good: 90m, 24h, 7d.")
@click.option("--again", is_flag=True, help="With --claim: the devices exist, and their boards may claim anew.")
@click.option("--labels", type=click.Path(path_type=Path, dir_okay=False), help="Write a sheet of labels: .html, .svg or .txt.")
@fleet_option
def provision(
    device: str | None,
    profile: str | None,
    out: Path,
    count: int,
    batch: Path | None,
    data: str,
    claim: bool,
    expires: str,
    again: bool,
    labels: Path | None,
    fleet_path: Path,
) -> None:
    """Make bundles that turn boards into devices of the fleet: configuration, unit, installer, and a key or a claim."""
    from edgefl.server.labels import label_of, sheet_form, write_sheet
    from edgefl.server.provision import provision_all
    from edgefl.store.fleet import Fleet

    if again and not claim:
        raise InputError("--again is for claims", remedy="Give --claim too")
    seconds = claim_seconds(expires) if claim else None
    orders = _batch_orders(batch, device, profile, count, data) if batch else _orders(device, profile, count, data)
    fleet = Fleet.open(fleet_path)
    form = sheet_form(labels) if labels else None

    def finish(done: "Sequence[Provisioned]") -> None:
        if labels and form:
            write_sheet(labels, form, [label_of(fleet.settings.name, one) for one in done])

    try:
        made = provision_all(fleet, orders, out, claim_seconds=seconds, again=again, finish=finish)
    except BaseException:
        if labels:
            labels.unlink(missing_ok=True)  # it was not there before
        raise
    for one in made:
        click.echo(f"{one.device.id}  {one.device.profile}  {one.bundle}" + (f"  {one.claim.token}" if one.claim else ""))
    if claim:
        click.echo(f"each token is good once, for {expires}, and is not shown again; `edgefl broker --claims` lets boards claim")
    else:
        click.echo("copy each bundle to its board and run install.sh in it as root; it holds the device's private key")


def _orders(device: str | None, profile: str | None, count: int, data: str) -> "list[Order]":
    """One device, or numbered ones. Raises InputError."""
    from edgefl.server.enrolment import Order
    from edgefl.server.provision import numbered

    if device is None or profile is None:
        raise InputError("no device to make", expected="ID and --profile, or --from FILE")
    return [Order(name, profile, data) for name in numbered(device, count)]


def _batch_orders(batch: Path, device: str | None, profile: str | None, count: int, data: str) -> "list[Order]":
    """The devices of a file, which says everything itself. Raises InputError."""
    from edgefl.server.batch import read_batch

    if device or profile or count != 1 or data:
        raise InputError("--from names the devices by itself", remedy="Leave out ID, --profile, --count and --data")
    return read_batch(batch)


def claim_seconds(text: str) -> float:
    """Seconds in a duration such as 90m, 24h or 7d.

    Raises:
        InputError: no duration, shorter than a minute or longer than 30 days.
    """
    found = re.fullmatch(r"([0-9]{1,6})([mhd])", text.strip())
    seconds = int(found[1]) * SECONDS[found[2]] if found else 0
    if not 60 <= seconds <= LONGEST_CLAIM:
        raise InputError("a claim cannot be good for that long", expected="1m to 30d, for example 24h", found=repr(text)[:40])
    return float(seconds)
