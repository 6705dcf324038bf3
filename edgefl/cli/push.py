"""`edgefl push`: a model becomes a version, one variant per profile of the fleet."""

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from edgefl.cli.options import fleet_option, json_option
from edgefl.recipe import LOSSES, OPTIMIZERS, Loss, Optimizer, Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgefl.profile import Profile
    from edgefl.server.explained import Explanation
    from edgefl.server.pushed import PushedVariant
    from edgefl.store.fleet import Fleet


@click.command()
@click.argument("model", metavar="MODEL")
@click.option("--name", help="The model's name in the fleet.  [default: MODEL's own]")
@click.option("--weights", type=click.Path(path_type=Path), help="safetensors file or torch checkpoint of the full model.")
@click.option("--trained", is_flag=True, help="Begin with what the fleet has learned: its release's newest weights.")
@click.option("--batch", type=click.IntRange(1, 65536), default=16, show_default=True, help="Examples per training step.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the initial weights.")
@click.option("--holdout", metavar="SOURCE", help="Examples to measure each variant's accuracy on.")
@click.option("--calibrate", metavar="SOURCE", help="Typical examples: make int8 graphs for predictions where they win.")
@click.option("--int8-drop", type=click.FloatRange(0, 1), default=0.01, show_default=True, help="Accuracy that int8 may lose.")
@click.option("--retrain", metavar="SOURCE", help="Retrain what only just does not fit on these examples, without labels.")
@click.option("--retrain-labels", is_flag=True, help="Retrain towards the labels of these examples.")
@click.option("--retrain-steps", type=click.IntRange(1, 1_000_000), default=1000, show_default=True, help="Batches of 128.")
@click.option("--profile", "only", multiple=True, help="Push for this profile only; may be repeated.  [default: all in use]")
@click.option("--loss", type=click.Choice(LOSSES), default=LOSSES[0], show_default=True, help="mse without labels: autoencoder.")
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), default="sgd", show_default=True, help="Of the boards.")
@click.option("--proximal", is_flag=True, help="Make FedProx's term possible; its weight comes with `edgefl train start`.")
@click.option("--freeze", multiple=True, metavar="PATTERN", help="Do not train tensors of these names; may be repeated.")
@click.option("--freezable", is_flag=True, help="Freeze first layers on a board where that lets a better variant fit.")
@click.option("--personal", multiple=True, metavar="PATTERN", help="Keep tensors of these names on each device; may be repeated.")
@click.option("--hold", is_flag=True, help="Do not give it to all devices at once: `edgefl rollout start` will.")
@click.option("--drop", type=click.FloatRange(0, 1), default=1.0, help="Accuracy that a device may lose by it.  [default: any]")
@click.option(
    "--trial", type=click.FloatRange(1, 86400), default=900.0, show_default=True, help="Seconds a device's trial may take."
)
@click.option("--starts", type=click.IntRange(1, 100), default=3, show_default=True, help="Times that a trial may be begun.")
@click.option("--source", "sources", multiple=True, metavar="URL", help="Files also at https://... or file:///...; repeatable.")
@click.option("--keys", multiple=True, type=click.Path(path_type=Path, file_okay=False), help="Directory with release keys.")
@click.option("--explain", is_flag=True, help="Say what each profile could have had, and why it gets what it gets.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw what --explain says into this PNG file.")
@json_option
@fleet_option
def push(
    model: str,
    name: str | None,
    weights: Path | None,
    trained: bool,
    batch: int,
    seed: int,
    holdout: str | None,
    calibrate: str | None,
    int8_drop: float,
    retrain: str | None,
    retrain_labels: bool,
    retrain_steps: int,
    only: tuple[str, ...],
    loss: Loss,
    optimizer: Optimizer,
    proximal: bool,
    freeze: tuple[str, ...],
    freezable: bool,
    personal: tuple[str, ...],
    hold: bool,
    drop: float,
    trial: float,
    starts: int,
    sources: tuple[str, ...],
    keys: tuple[Path, ...],
    explain: bool,
    plot: Path | None,
    as_json: bool,
    fleet_path: Path,
) -> None:
    """Compress MODEL for every profile of the fleet, export, prove, sign and announce it.

    MODEL is a built-in model (mnist-2nn, mnist-cnn, har-cnn1d, mnist-exits) or package.module:factory.
    """
    from edgefl.server.explained import Explanation
    from edgefl.server.push import profiles_in_use
    from edgefl.server.push import push as make
    from edgefl.server.push_request import PushRequest
    from edgefl.server.retraining import Retraining
    from edgefl.simulate.explaining import check_drawing, draw_explanations
    from edgefl.sources.parse import open_source
    from edgefl.store.fleet import Fleet
    from edgefl.wire.releases import Health

    if plot:
        check_drawing()
    fleet = Fleet.open(fleet_path)
    explained: list[Explanation] = []
    profiles = _chosen(fleet, only) if only else profiles_in_use(fleet)
    examples = open_source(holdout).load() if holdout else None
    request = PushRequest(
        name or _default_name(model), model, weights, batch, seed, examples,
        recipe=Recipe(loss, optimizer, proximal, mutual=loss == "self-distillation"), freeze=freeze, personal=personal,
        hold=hold, health=Health(drop=drop, seconds=trial, starts=starts), sources=sources, keys=keys,
        calibrate=open_source(calibrate).load() if calibrate else None, int8_drop=int8_drop, freezable=freezable,
        retraining=Retraining(open_source(retrain).load(), retrain_labels, retrain_steps) if retrain else None, trained=trained,
    )  # fmt: skip
    made = make(
        fleet, request, profiles, now=time.time(), on_planned=explained.append,
        on_progress=lambda text: click.echo(text, err=True),
    )  # fmt: skip
    if plot:
        draw_explanations(explained, plot)
    if as_json:
        click.echo(msgspec.json.encode({"pushed": made, "explained": explained} if explain else made).decode())
        return
    _print_outcome(made, explained if explain else (), hold)


def _print_outcome(made: "Sequence[PushedVariant]", explained: "Sequence[Explanation]", hold: bool) -> None:
    from edgefl.server.pushed import COLUMNS, table

    _print((COLUMNS, *table(made)))
    for one in explained:
        _print_explanation(one)
    name = f"{made[0].model}@{made[0].version}"
    then = f"held back: edgefl rollout start {name}" if hold else "a running server announces it now"
    click.echo(f"pushed {name}; {then}")


def _print(rows: "Sequence[tuple[str, ...]]") -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_explanation(one: "Explanation") -> None:
    from edgefl.server.explained import COLUMNS, limits, table

    click.echo(f"\n{one.profile} ({one.engine}), {limits(one)}; by {one.basis}")
    _print((COLUMNS, *table(one)))
    click.echo(one.reason)


def _default_name(model: str) -> str:
    """A built-in's name; of `package.module:SomeNet`, `some-net`."""
    words = re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", model.rpartition(":")[2])
    return model if ":" not in model else "-".join(words).lower()


def _chosen(fleet: "Fleet", names: tuple[str, ...]) -> "tuple[Profile, ...]":
    from edgefl.errors import ProfileError

    known = fleet.profiles()
    for name in names:
        if name not in known:
            raise ProfileError(f"no profile is called {name!r}", expected=", ".join(sorted(known)), remedy="Choose one of these")
    return tuple(known[name] for name in names)
