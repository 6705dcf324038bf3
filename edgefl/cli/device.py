"""`edgefl device`: what runs on the board."""

import os
from pathlib import Path
from typing import TextIO

import click

from edgefl.cli.options import json_option, log_json_option

UNABLE = 4
"""Exit code for a board that cannot take part, as for any machine that cannot do it now."""


@click.group()
def device() -> None:
    """What runs on the board."""


bundle_argument = click.argument("bundle", type=click.Path(path_type=Path), default=".")
data_option = click.option("--data", metavar="SOURCE", help="Where the examples come from, instead of what device.toml says.")


@device.command()
@bundle_argument
@data_option
@log_json_option
def run(bundle: Path, data: str | None) -> None:
    """Run the agent of the device whose BUNDLE this is, until SIGTERM or Ctrl-C."""
    # Before numpy is loaded: the agent does no linear algebra, and each idle thread of OpenBLAS reserves memory.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import faulthandler

    from edgefl.cli.process import log_as, log_to_stderr, stop_on_signals
    from edgefl.device.config import load_bundle
    from edgefl.device.start import run_device

    log_to_stderr()
    faulthandler.enable()  # a watchdog that aborts an agent which hangs makes it say where
    loaded = load_bundle(bundle, data=data)
    log_as(loaded.config.id)
    run_device(loaded, stop_on_signals())


@device.command()
@bundle_argument
@click.option("--code", type=click.File(), help="File with the text of the label's QR code, - for standard input.")
def claim(bundle: Path, code: TextIO | None) -> int:
    """Claim the certificate of the board whose BUNDLE this is; `device run` does the same at its start."""
    from edgefl.cli.process import log_to_stderr, stop_on_signals
    from edgefl.device.claimcode import LONGEST
    from edgefl.device.config import load_bundle
    from edgefl.device.start import claim_only

    log_to_stderr()
    loaded = load_bundle(bundle, unclaimed=code is not None)
    done = claim_only(loaded, stop_on_signals(), code=code.read(LONGEST + 1) if code else None)
    click.echo(f"{loaded.config.id} has its certificate" if done else "stopped; nothing was claimed")
    return 0 if done else UNABLE


@device.command()
@bundle_argument
@data_option
@json_option
def doctor(bundle: Path, data: str | None, as_json: bool) -> int:
    """Check whether the board whose BUNDLE this is can take part, or answer if it does not train; exit code 4 if not.

    Changes nothing.
    """
    import msgspec

    from edgefl.device.examine import examine

    found = examine(bundle, data=data)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    else:
        click.echo(f"device {found.device or '?'}: {', '.join(f'{name} {value}' for name, value in found.versions.items())}")
        for check in found.checks:
            click.echo(f"{check.state:<8} {check.name:<12} {check.text}" + (f" {check.remedy}." if check.remedy else ""))
        what = "take part" if found.trains else "answer; it takes part in no training"
        click.echo(f"This device can {what}." if found.able else f"This device cannot {what}.")
    return 0 if found.able else UNABLE


@device.command()
@click.option("--bundle", type=click.Path(path_type=Path), default=".", help="The device's bundle.  [default: .]")
@click.option("--model", "name", required=True, help="The model's name in the fleet.")
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Of the computation.")
@click.argument("source", metavar="SOURCE")
def predict(bundle: Path, name: str, threads: int, source: str) -> None:
    """Predict with the newest version that the agent holds; one line of JSON for each example of SOURCE.

    SOURCE is a source of examples such as npz:FILE, or - for standard input: one example per line, a JSON array of numbers.
    """
    import sys

    from edgefl.cli.predict import examples_in, lines_of
    from edgefl.device.model import Model
    from edgefl.sources.parse import open_source

    model = Model.open(bundle, name, threads=threads)
    batches = examples_in(sys.stdin.buffer) if source == "-" else [open_source(source).load().x]
    for x in batches:
        for line in lines_of(model, x):
            click.echo(line)
