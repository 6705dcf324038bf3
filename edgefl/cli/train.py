"""`edgefl train`: start, stop and follow a training. The wishes go into the fleet's database; the server acts on them."""

import time
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import msgspec

from edgefl.cli.options import fleet_option, json_option


@click.group()
def train() -> None:
    """Start, stop and follow the training of a model."""


@train.command()
@click.argument("model")
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="TOML file with the plan; options win over it.")
@click.option("--rounds", type=int, help="How many rounds.")
@click.option("--epochs", type=int, help="Passes over the local data per round.")
@click.option("--learning-rate", type=float, help="Of the local SGD.")
@click.option("--sparsity", type=float, help="Fraction of coordinates that an update carries; smaller is less traffic.")
@click.option("--bits", type=int, help="Per sent value, 1 to 8.")
@click.option("--fraction", type=float, help="Of the devices that take part in a round.")
@click.option("--cohort", type=int, help="Updates that close a round at once.  [default: all valid devices]")
@click.option("--quorum", type=int, help="Updates that are enough at the deadline.")
@click.option("--deadline", type=float, help="Seconds after the opening of a round.")
@click.option("--staleness", type=int, help="Rounds that an update may be late.")
@click.option("--server-rate", type=float, help="Factor on the mean update.")
@click.option("--seed", type=int, help="Of shuffling and rounding.")
@click.option("--holdout", default="", metavar="SOURCE", help="Examples to evaluate every round on.")
@fleet_option
def start(model: str, plan_file: Path | None, holdout: str, fleet_path: Path, **options: Any) -> None:
    """Start training the newest version of MODEL on the fleet's devices."""
    from edgefl.errors import ConfigError
    from edgefl.plan import Plan
    from edgefl.sources.parse import open_source
    from edgefl.store.database import open_database
    from edgefl.store.fleet import Fleet
    from edgefl.store.ledger import latest_version, start_training
    from edgefl.store.registry import list_devices
    from edgefl.strict_toml import read_toml

    fleet = Fleet.open(fleet_path)
    if holdout:
        open_source(holdout).load()
    with closing(open_database(fleet.database)) as database:
        version = latest_version(database, model)
        valid = sum(device.revoked is None for device in list_devices(database))
        plan = read_toml(plan_file, Plan, ConfigError) if plan_file else Plan(cohort=max(1, valid))
        given = {name: value for name, value in options.items() if value is not None}
        try:
            plan = msgspec.convert({**msgspec.structs.asdict(plan), **given}, Plan)
        except msgspec.ValidationError as error:
            raise ConfigError("the plan is impossible", found=str(error), remedy="See `edgefl train start --help`") from None
        start_training(database, version, plan, holdout, time.time())
    click.echo(f"training {model}@{version.version}: {plan.rounds} rounds, a round closes with {plan.cohort} updates")


@train.command()
@click.argument("model")
@fleet_option
def stop(model: str, fleet_path: Path) -> None:
    """Stop the training of MODEL; the last closed round's weights stay."""
    from edgefl.errors import FleetError
    from edgefl.store.database import open_database
    from edgefl.store.fleet import Fleet
    from edgefl.store.ledger import end_training, trainings

    with closing(open_database(Fleet.open(fleet_path).database)) as database:
        running = [t for t in trainings(database, "running") if t.model == model]
        if not running:
            raise FleetError(f"model {model!r} is not being trained", remedy="See `edgefl status`")
        end_training(database, running[0].id, "stopped")
    click.echo(f"stopped the training of {model}")


@train.command()
@click.argument("model")
@json_option
@fleet_option
def follow(model: str, as_json: bool, fleet_path: Path) -> None:
    """Print each round of MODEL's newest training as it closes, until the training ends."""
    from edgefl.errors import FleetError
    from edgefl.server.status import fleet_status
    from edgefl.store.database import open_database
    from edgefl.store.fleet import Fleet

    fleet = Fleet.open(fleet_path)
    shown = 0
    with closing(open_database(fleet.database)) as database:
        while True:
            found = [t for t in fleet_status(database, fleet.settings.name).trainings if t.model == model]
            if not found:
                raise FleetError(f"model {model!r} has never been trained", remedy=f"Start it: edgefl train start {model}")
            closed = [r for r in found[-1].rounds if not r.open]
            for item in closed[shown:]:
                accuracy = "" if item.accuracy is None else f"  accuracy {item.accuracy:.4f}"
                traffic = f"{item.uplink_bytes} B up, {item.downlink_bytes} B down"
                line = f"round {item.round}: {item.updates} updates, {traffic}{accuracy}"
                click.echo(msgspec.json.encode(item).decode() if as_json else line)
            shown = len(closed)
            if found[-1].state != "running":
                return
            time.sleep(0.5)
