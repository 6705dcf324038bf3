"""`edgefl broker check`: look at a running broker from outside."""

import click


@click.command("check")
def check() -> None:
    """Look at a running broker from outside."""
