"""`edgefl simulate`: federated learning with thousands of virtual devices on this machine."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgefl.simulate.experiment import Experiment
    from edgefl.simulate.result import Result
    from edgefl.simulate.run import Progress
    from edgefl.simulate.workers import Workers


@click.command()
@click.option("--preset", metavar="NAME", help="A ready experiment; --list shows them.")
@click.option("--file", "file", type=click.Path(path_type=Path), help="TOML file with the experiment.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a value, as plan.rounds=5; may be repeated.")
@click.option(
    "--workers", type=click.IntRange(1, 1024), default=None, help="How many processes play devices.  [default: one per core]"
)
@click.option("--ray", "on_ray", is_flag=True, help="Let Ray run the workers.")
@click.option("--ray-address", metavar="ADDRESS", help="Of a running Ray cluster.  [default: one is started here]")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the result here.")
@click.option("--plot", "plots", type=click.Path(path_type=Path), metavar="DIR", help="Write plots (PNG) into this directory.")
@click.option(
    "--against", type=click.Path(path_type=Path), multiple=True, metavar="JSON", help="Draw this result, too; may be repeated."
)
@click.option("--list", "listed", is_flag=True, help="List the presets.")
def simulate(
    preset: str | None,
    file: Path | None,
    settings: tuple[str, ...],
    workers: int | None,
    on_ray: bool,
    ray_address: str | None,
    json_file: Path | None,
    plots: Path | None,
    against: tuple[Path, ...],
    listed: bool,
) -> None:
    """Simulate a training: codec, aggregation and engine are the live system's; broker and clock are not needed."""
    from edgefl.store.atomic import write_file

    if listed:
        _list()
        return
    experiment = _experiment(preset, file, settings)
    others = [_read(path) for path in against]
    if plots:
        from edgefl.simulate.plots import check_plots

        check_plots()  # now, not after an hour
    result = _run(experiment, workers or 0, ray=on_ray or bool(ray_address), address=ray_address)
    if json_file:
        write_file(json_file, result.json())
    if plots:
        from edgefl.simulate.plots import draw

        for path in draw([*others, result], plots):
            click.echo(f"wrote {path}", err=True)
    _summary(result)


def _list() -> None:
    from edgefl.simulate.presets import names, preset

    width = max(map(len, names()))
    for name in names():
        click.echo(f"{name.ljust(width)}  {preset(name).about}")


def _experiment(name: str | None, file: Path | None, settings: tuple[str, ...]) -> "Experiment":
    from edgefl.errors import ConfigError
    from edgefl.simulate.experiment import Experiment
    from edgefl.simulate.presets import changed, preset
    from edgefl.strict_toml import read_toml

    if (name is None) == (file is None):
        raise click.UsageError("give either --preset or --file; --list shows the presets")
    experiment = preset(name) if name is not None else read_toml(file or Path(), Experiment, ConfigError)
    return changed(experiment, settings)


def _read(path: Path) -> "Result":
    import msgspec

    from edgefl.errors import ConfigError
    from edgefl.simulate.result import Result

    try:
        return Result.read(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read", found=error.strerror or str(error)) from error
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path} holds no result of a simulation", found=str(error)) from None


def _workers(count: int, *, ray: bool, address: str | None) -> "Workers":
    from edgefl.simulate.cluster import RayWorkers
    from edgefl.simulate.processes import LocalWorkers

    return RayWorkers(count, address) if ray else LocalWorkers(count)


def _run(experiment: "Experiment", count: int, *, ray: bool, address: str | None) -> "Result":
    from edgefl.simulate.run import simulate as play

    click.echo(f"preparing {experiment.name}", err=True)
    bar = click.progressbar(length=experiment.plan.rounds, label="rounds", file=sys.stderr, show_pos=True, item_show_func=_shown)
    with _workers(count, ray=ray, address=address) as workers, bar:
        return play(experiment, workers=workers, progress=lambda now: bar.update(1, now))


def _shown(now: "Progress | None") -> str:
    row = now.row if now else None
    if row is None:
        return ""
    quality = "" if row.accuracy is None else f"accuracy {row.accuracy:.4f}"
    return f"{quality}  {row.uplink_bytes / 1e6:.2f} MB up"


def _summary(result: "Result") -> None:
    totals, devices = result.totals, result.devices
    quality = "no accuracy" if totals.final_accuracy is None else f"accuracy {totals.final_accuracy:.4f}"
    time = f", {totals.time:.0f} simulated s" if totals.time else ""
    click.echo(f"{result.experiment.name}: {quality} after {totals.rounds} rounds{time}, in {totals.seconds:.0f} s")
    if result.experiment.target:
        reached = f"in round {totals.target_round}" if totals.target_round else "not reached"
        click.echo(f"target {result.experiment.target:g}: {reached}")
    ratio = f" ({totals.dense_uplink_bytes / totals.uplink_bytes:.0f} times less)" if totals.uplink_bytes else ""
    click.echo(f"up {totals.uplink_bytes:,} bytes instead of {totals.dense_uplink_bytes:,} dense{ratio}")
    click.echo(f"down {totals.downlink_bytes:,} bytes; {totals.bits_per_parameter:.4f} bits up per parameter and update")
    for part in (*result.rows[-1].structures, *result.rows[-1].ensembles):
        measured = f"loss {part.loss}" if part.accuracy is None else f"accuracy {part.accuracy:.4f}"
        click.echo(f"{part.name}: {measured}")
    share = result.participation
    click.echo(f"updates per device: {share.least} to {share.most}, Gini {share.gini:.3f}")
    if devices:
        click.echo(f"on the devices' own data: mean {devices.mean:.4f}, worst tenth {devices.worst_tenth:.4f}")
    stands = result.standing
    if stands.excluded_hostile or stands.excluded_honest:
        click.echo(f"excluded {stands.excluded_hostile} hostile and {stands.excluded_honest} honest devices")
    if result.trouble:
        click.echo(f"{totals.refused} updates refused, {totals.failed} trainings failed; the first: {result.trouble}", err=True)
