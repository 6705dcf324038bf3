"""Options that several commands share."""

import os
from pathlib import Path

import click

from edgefl.cli.process import FORMAT

fleet_option = click.option(
    "--fleet",
    "fleet_path",
    type=click.Path(path_type=Path),
    envvar="EDGEFL_FLEET",
    default="fleet",
    show_default="./fleet, or EDGEFL_FLEET",
    help="The fleet directory.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def _log_json(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: ARG001 - click's signature
    if value:
        os.environ[FORMAT] = "json"


log_json_option = click.option(
    "--log-json",
    is_flag=True,
    expose_value=False,
    callback=_log_json,
    help=f"Log one JSON object per line ({FORMAT}=json does the same).",
)
