"""`edgefl rollout status`: how far rollouts are, told once, or again and again until none of them is open.

For a person as text (`edgefl.cli.rollout_view`), for a program as JSON: a list, or one line for each change.
"""

import time
from collections.abc import Callable

import click
import msgspec

from edgefl.cli.rollout_view import lines, picture
from edgefl.server.rollout_status import RolloutStatus

LOOK_EVERY = 0.5

Look = Callable[[], list[RolloutStatus]]


def show(statuses: list[RolloutStatus], *, as_json: bool) -> None:
    """Say once how far they are."""
    if as_json:
        click.echo(msgspec.json.encode(statuses).decode())
        return
    if not statuses:
        click.echo("no rollouts yet; start one with `edgefl rollout start`")
    for one in statuses:
        for line in lines(one, time.time()):
            click.echo(line)


def follow(look: Look) -> None:
    """One line of JSON for each change, until nothing is open."""
    last = b""
    while True:
        statuses = look()
        said = msgspec.json.encode(statuses)
        if said != last:
            click.echo(said.decode())
            last = said
        if not any(one.is_open for one in statuses):
            return
        time.sleep(LOOK_EVERY)


def draw(look: Look) -> None:
    """Draw bars until nothing is open."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            statuses = look()
            live.update(picture(statuses, time.time(), console.height), refresh=True)
            if not any(one.is_open for one in statuses):
                return
            time.sleep(LOOK_EVERY)
