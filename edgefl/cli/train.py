"""`edgefl train`: start, stop and follow a training. The wishes go into the fleet's database; the server acts on them."""

import time
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import click
import msgspec

from edgefl.cli.options import fleet_option, json_option
from edgefl.errors import FleetError
from edgefl.plan import AggregatorName, Plan, Rate, Sampling, Scope, ServerOptimizer

LOOK_EVERY = 0.5


@click.group()
def train() -> None:
    """Start, stop and follow the training of a model."""


MORE = """
\b
More keys of a plan file, for which there is no option:
  by_layer, sampled, rotated, context, correction, warmup   how updates are chosen and coded
  ramp                                                      how slowly exits begin to learn of each other
  attackers                                                 how many the robust aggregators are to stand
What each key means: python -m pydoc edgefl.plan
"""


@train.command(epilog=MORE)
@click.argument("model")
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="TOML file with the plan; options win over it.")
@click.option("--rounds", type=int, help="How many rounds.")
@click.option("--epochs", type=int, help="Passes over the local data per round.")
@click.option("--learning-rate", type=float, help="Of the local optimiser.")
@click.option("--decay", type=float, help="Factor on the learning rate from round to round.")
@click.option("--rate", type=click.Choice(get_args(Rate)), help="What a device adapts the learning rate to.")
@click.option("--proximal", type=float, help="FedProx's mu; needs a version pushed with --proximal.")
@click.option("--sparsity", type=float, help="Fraction of coordinates that an update carries; smaller is less traffic.")
@click.option("--bits", type=int, help="Per sent value, 1 to 8.")
@click.option("--price", type=float, help="How strongly coordinates that cost many bits are avoided.")
@click.option("--downlink-sparsity", type=float, help="Fraction of the weights that changes from round to round on devices.")
@click.option("--fraction", type=float, help="Of the devices that take part in a round.")
@click.option("--sampling", type=click.Choice(get_args(Sampling)), help="Who takes part: all alike, or large losses more often.")
@click.option("--cohort", type=int, help="Updates that close a round at once.  [default: as many as devices will take part]")
@click.option("--quorum", type=int, help="Updates that are enough at the deadline.")
@click.option("--deadline", type=float, help="Seconds after the opening of a round.")
@click.option("--staleness", type=int, help="Rounds that an update may be late.")
@click.option("--aggregator", type=click.Choice(get_args(AggregatorName)), help="What is made of the updates of a round.")
@click.option("--clip", type=float, help="Updates longer than so many times the median are shortened.")
@click.option("--exclude", type=float, help="Score at which a device is excluded until it is reinstated.")
@click.option("--server-optimizer", "optimizer", type=click.Choice(get_args(ServerOptimizer)), help="What takes the aggregate.")
@click.option("--server-rate", type=float, help="Factor on the aggregate.")
@click.option("--pruning", "pruning_target", type=float, help="Part of the weights that is pruned in the end; 0 prunes nothing.")
@click.option("--pruning-share", type=float, help="Of what is left, goes in each pruning.")
@click.option("--pruning-first", type=int, help="Round after which is pruned for the first time.")
@click.option("--pruning-every", type=int, help="Rounds from one pruning to the next.")
@click.option("--pruning-scope", type=click.Choice(get_args(Scope)), help="What small means.")
@click.option("--pruning-below", type=float, help="Prune only when the devices' mean loss is at most this.")
@click.option("--jump-start", "jump_devices", type=int, help="Begin with the best of so many quick devices; 0 begins plainly.")
@click.option("--jump-epochs", type=int, help="Passes over the local data in the jump-start.")
@click.option("--seed", type=int, help="Of shuffling and rounding.")
@click.option("--holdout", default="", metavar="SOURCE", help="Examples to evaluate every round on.")
@fleet_option
def start(model: str, plan_file: Path | None, holdout: str, fleet_path: Path, **options: Any) -> None:
    """Start training the released version of MODEL on the fleet's devices.

    It goes on from where the last training of this version ended. The same command again changes nothing.
    """
    from edgefl.cli.planning import checked_holdout, planned
    from edgefl.feasible import check_plan
    from edgefl.server.starting import begin_training, is_pruned
    from edgefl.store.blobs import BlobStore
    from edgefl.store.database import open_database
    from edgefl.store.fleet import Fleet
    from edgefl.store.versions import released_version
    from edgefl.wire.tasks import LONGEST_CONTEXT, keeps_history

    fleet = Fleet.open(fleet_path)
    given = {name: value for name, value in options.items() if value is not None}
    with closing(open_database(fleet.database)) as database:
        version = released_version(database, model)
        plan = planned(database, version, plan_file, given)
        check_plan(plan, pruned=is_pruned(database, BlobStore(fleet.blobs), version))
        source = checked_holdout(database, version, holdout) if holdout else ""
        begun = begin_training(database, version, plan, source, time.time())
    if not begun.fresh:
        click.echo(f"{model}@{version.version} is being trained with this very plan already; it goes on")
        return
    click.echo(f"training {model}@{version.version}: {plan.rounds} rounds; {_closing(plan)}")
    if plan.context and not keeps_history(plan):
        click.echo(f"updates are coded without context: with a staleness above {LONGEST_CONTEXT} too many weights would be kept")


def _closing(plan: Plan) -> str:
    """When rounds close, for the operator."""
    from edgefl.jumpstart import cohort_at, quorum_at

    def closes(number: int) -> str:
        return f"closes with {cohort_at(plan, number)} updates, or after {plan.deadline:g} s with {quorum_at(plan, number)}"

    return f"the jump-start {closes(1)}; a later round {closes(2)}" if plan.jump_start else f"a round {closes(1)}"


@train.command()
@click.argument("model")
@fleet_option
def stop(model: str, fleet_path: Path) -> None:
    """Stop the training of MODEL; the last closed round's weights stay.

    Updates of the open round are kept, and count if the training of this version is started again.
    """
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
    """Print each round of MODEL's newest training as it closes, until the training ends.

    Of a model that has been pruned: which part of the weights that can be pruned is gone after the round. With --json one object
    per round, in which `pruned` is that part, from 0 to 1.
    """
    from edgefl.server.status import FollowedRound, closed_rounds
    from edgefl.store.database import open_database
    from edgefl.store.fleet import Fleet
    from edgefl.store.ledger import is_running, newest_training

    def line(item: FollowedRound) -> str:
        loss = "" if item.loss is None else f"  loss {item.loss:.4f}"
        accuracy = "" if item.accuracy is None else f"  accuracy {item.accuracy:.4f}"
        traffic = f"{item.uplink_bytes} B up, {item.downlink_bytes} B down"
        bits = "" if item.bits_per_parameter is None else f"  {item.bits_per_parameter:.3f} bits a parameter"
        pruned = f"  pruned {100 * item.pruned:.1f} %" if item.pruned else ""
        return f"round {item.round}: {item.updates} updates, {traffic}{bits}{pruned}{loss}{accuracy}"

    fleet = Fleet.open(fleet_path)
    with closing(open_database(fleet.database)) as database:
        training = newest_training(database, model)
        shown = training.first
        running = True
        while running:
            running = is_running(database, training.id)  # asked first: then the rounds that follow are all
            for item in closed_rounds(database, training, shown):
                click.echo(msgspec.json.encode(item).decode() if as_json else line(item))
                shown = item.round + 1
            if running:
                time.sleep(LOOK_EVERY)
        if not as_json:
            click.echo(f"{model}@{training.version}: {newest_training(database, model).state}")
