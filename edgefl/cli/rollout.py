"""`edgefl rollout` and `edgefl rollback`: versions go to the fleet stage by stage, and back at once.

The orders go into the fleet's database and hold whether a server runs or not; the running server tells devices what follows.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from edgefl.cli.options import fleet_option, json_option
from edgefl.errors import ConfigError, InputError
from edgefl.rollout_rules import Rules, Target, parse_limit, parse_share, parse_stages

if TYPE_CHECKING:
    from edgefl.server.rollout_events import Word
    from edgefl.server.rollout_orders import Done
    from edgefl.server.rollout_status import RolloutStatus


@contextmanager
def _database(fleet_path: Path) -> Iterator[sqlite3.Connection]:
    from edgefl.store.database import open_database
    from edgefl.store.fleet import Fleet

    with closing(open_database(Fleet.open(fleet_path).database)) as database:
        yield database


@click.group()
def rollout() -> None:
    """Bring a version to the fleet stage by stage, and follow it."""


@rollout.command()
@click.argument("version", metavar="MODEL[@VERSION]")
@click.option("--stages", default="1,5%,25%,100%", show_default=True, help="Devices told in each stage: numbers and shares.")
@click.option("--success", default="90%", show_default=True, help="Of a stage's devices, before the next one opens.")
@click.option(
    "--abort", "limit", default="10%/3", show_default=True, help="Share of failures, of at least so many devices, that stops."
)
@click.option("--at-limit", type=click.Choice(["pause", "abort"]), default="pause", show_default=True, help="What is done then.")
@click.option("--approve", is_flag=True, help="Wait for `edgefl rollout promote` before each next stage.")
@click.option(
    "--timeout", type=float, default=0.0, help="Seconds after which a device that is there has failed.  [default: none]"
)
@click.option("--tag", "tags", multiple=True, help="Only devices with this tag; may be repeated.")
@click.option("--profile", "profiles", multiple=True, help="Only devices with this profile; may be repeated.")
@click.option("--device", "devices", multiple=True, metavar="ID", help="Only this device; may be repeated.")
@json_option
@fleet_option
def start(
    version: str,
    tags: tuple[str, ...],
    profiles: tuple[str, ...],
    devices: tuple[str, ...],
    as_json: bool,
    fleet_path: Path,
    **rules: Any,
) -> None:
    """Start rolling out a version of MODEL, by default the newest one.

    A running rollout of the model is superseded if it concerns one of the same devices; otherwise both run. When the last stage
    has succeeded the version becomes the release, unless the rollout was only for some devices. Push with --hold, or devices get
    the version before the rollout starts.
    """
    from edgefl.server.rollout_orders import start_rollout

    wanted = _rules(**rules)
    model, _, number = version.partition("@")
    with _database(fleet_path) as database:
        done = start_rollout(database, _version(database, model, number), wanted, Target(tags, profiles, devices), time.time())
        _say(database, done, as_json=as_json)


def _rules(*, stages: str, success: str, limit: str, at_limit: str, approve: bool, timeout: float) -> Rules:
    """The rules that the options say. Raises ConfigError."""
    abort, minimum = parse_limit(limit)
    given = {
        "stages": msgspec.to_builtins(parse_stages(stages)), "success": parse_share(success), "abort": abort, "minimum": minimum,
        "at_limit": at_limit, "approve": approve, "timeout": timeout,
    }  # fmt: skip
    try:
        return msgspec.convert(given, Rules)
    except msgspec.ValidationError as error:
        raise ConfigError("impossible rules", found=str(error), remedy="See `edgefl rollout start --help`") from None


def _version(database: sqlite3.Connection, model: str, number: str) -> Any:
    """The version that is meant. Raises FleetError or InputError."""
    from edgefl.store.versions import get_version, latest_version

    if not number:
        return latest_version(database, model)
    if not (number.isascii() and number.isdigit() and len(number) <= 15):
        raise InputError("no version", expected="MODEL@VERSION, for example cam@3", found=f"{model}@{number}"[:60])
    return get_version(database, model, int(number))


def _say(database: sqlite3.Connection, done: "Done", *, as_json: bool) -> None:
    """What came of an order."""
    from edgefl.server.rollout_status import rollout_status
    from edgefl.server.rollouts import told_in_words

    if as_json:
        click.echo(msgspec.json.encode(rollout_status(database, done.record.state.id)).decode())
        return
    name = f"{done.record.model}@{done.record.version}"
    click.echo(f"rollout {done.record.state.id} of {name} to {done.record.target}: {done.record.state.phase}")
    for effect in done.effects:
        click.echo(f"  {told_in_words(effect)}")


def _ordered(word: "Word", model: str, number: int | None, fleet_path: Path, *, as_json: bool) -> None:
    from edgefl.server.rollout_orders import order

    with _database(fleet_path) as database:
        _say(database, order(database, model, word, time.time(), number), as_json=as_json)


number_option = click.option(
    "--rollout", "number", type=click.IntRange(1), metavar="NUMBER", help="Which, if several rollouts of MODEL are open."
)


@rollout.command()
@click.argument("model")
@number_option
@json_option
@fleet_option
def pause(model: str, number: int | None, as_json: bool, fleet_path: Path) -> None:
    """Tell no further devices; those that have been told go on."""
    _ordered("pause", model, number, fleet_path, as_json=as_json)


@rollout.command()
@click.argument("model")
@number_option
@json_option
@fleet_option
def resume(model: str, number: int | None, as_json: bool, fleet_path: Path) -> None:
    """Go on after a pause; if failures were the reason, without the devices that failed."""
    _ordered("resume", model, number, fleet_path, as_json=as_json)


@rollout.command()
@click.argument("model")
@number_option
@json_option
@fleet_option
def promote(model: str, number: int | None, as_json: bool, fleet_path: Path) -> None:
    """Open the next stage now, whether the gate is passed or not; at the last stage, finish."""
    _ordered("promote", model, number, fleet_path, as_json=as_json)


@rollout.command()
@click.argument("model")
@number_option
@json_option
@fleet_option
def abort(model: str, number: int | None, as_json: bool, fleet_path: Path) -> None:
    """End the rollout; every device that it concerns is to hold the release again."""
    _ordered("abort", model, number, fleet_path, as_json=as_json)


@rollout.command()
@click.argument("model", required=False)
@click.option("--all", "ended", is_flag=True, help="All rollouts that there ever were, not only open ones and the newest.")
@click.option("--watch", is_flag=True, help="Follow them until none of them is open; with --json one object per change.")
@json_option
@fleet_option
def status(model: str | None, ended: bool, watch: bool, as_json: bool, fleet_path: Path) -> None:
    """Show how far rollouts are, with every device: step, percent, bytes, last error, last seen."""
    from edgefl.cli.rollout_watch import draw, follow, show
    from edgefl.server.rollout_status import rollout_statuses

    with _database(fleet_path) as database:

        def look() -> "list[RolloutStatus]":
            return rollout_statuses(database, model, ended=ended)

        if not watch:
            show(look(), as_json=as_json)
        elif as_json:
            follow(look)
        else:
            draw(look)


@click.command()
@click.argument("model")
@click.option("--to", type=click.IntRange(1), metavar="VERSION", help="Go back to this version.  [default: what was before]")
@json_option
@fleet_option
def rollback(model: str, to: int | None, as_json: bool, fleet_path: Path) -> None:
    """Undo the last rollout or push of MODEL on every device at once.

    A running rollout ends, and every device is to hold the release. Otherwise the release before becomes the release again.
    """
    from edgefl.server.rollout_orders import roll_back

    with _database(fleet_path) as database:
        done = roll_back(database, model, time.time(), to)
    if as_json:
        click.echo(msgspec.json.encode(done).decode())
        return
    ended = f"; ended rollout {', '.join(map(str, done.ended))}" if done.ended else ""
    click.echo(f"every device is to hold {done.model}@{done.version}{ended}")
