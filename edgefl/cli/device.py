"""`edgefl device`: what runs on the board."""

from pathlib import Path

import click


@click.group()
def device() -> None:
    """What runs on the board."""


@device.command()
@click.argument("bundle", type=click.Path(path_type=Path), default=".")
@click.option("--data", metavar="SOURCE", help="Where the examples come from, instead of what device.toml says.")
def run(bundle: Path, data: str | None) -> None:
    """Run the agent of the device whose BUNDLE this is, until SIGTERM or Ctrl-C."""
    from edgefl.cli.process import log_to_stderr, stop_on_signals
    from edgefl.device.config import load_bundle
    from edgefl.device.start import run_device

    log_to_stderr()
    run_device(load_bundle(bundle, data=data), stop_on_signals())
