"""Options that several commands share."""

from pathlib import Path

import click

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
