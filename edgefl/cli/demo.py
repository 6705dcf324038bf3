"""`edgefl demo`: everything on this machine."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
import msgspec


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Directory with MNIST's files.  [default: digits]")
@click.option("--rounds", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option("--devices", type=click.IntRange(1, 200), default=6, show_default=True, help="Device processes; at least six.")
@click.option("--broker", type=click.Choice(["auto", "mosquitto", "embedded"]), default="auto", show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--epochs", type=click.IntRange(1, 1000), default=None, help="Local passes per round.")
@click.option("--downlink-sparsity", type=float, default=None, help="Fraction of the weights that changes per round on devices.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the result here.")
@click.option("--dir", "directory", type=click.Path(path_type=Path), help="Keep fleet, bundles and logs in this new directory.")
def demo(
    data: Path | None,
    rounds: int,
    devices: int,
    broker: str,
    seed: int,
    epochs: int | None,
    downlink_sparsity: float | None,
    json_file: Path | None,
    directory: Path | None,
) -> None:
    """Run a broker, a server and a fleet of device processes here: push a model, train it, show what happens."""
    from rich.console import Console
    from rich.live import Live

    from edgefl.demo.run import DemoRequest, run_demo
    from edgefl.demo.table import live, summary
    from edgefl.store.atomic import write_file

    request = DemoRequest(devices, rounds, data, broker, seed)
    if epochs is not None:
        request = replace(request, epochs=epochs)
    if downlink_sparsity is not None:
        request = replace(request, downlink_sparsity=downlink_sparsity)
    console = Console()
    with _workspace(directory) as workspace, Live(console=console, transient=True, refresh_per_second=4) as screen:
        result = run_demo(request, workspace, lambda *seen: screen.update(live(*seen)))
    console.print(summary(result))
    if json_file:
        write_file(json_file, msgspec.json.format(msgspec.json.encode(result), indent=2))


@contextmanager
def _workspace(directory: Path | None) -> Iterator[Path]:
    """A directory that is kept if it was asked for, and removed otherwise."""
    from edgefl.errors import InputError

    if directory is None:
        with tempfile.TemporaryDirectory(prefix="edgefl-demo-") as temporary:
            yield Path(temporary)
        return
    if directory.exists():
        raise InputError(f"{directory} exists already", remedy="Give --dir a new directory")
    directory.mkdir(parents=True)
    yield directory.resolve()
