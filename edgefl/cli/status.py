"""`edgefl status`: the fleet at a glance."""

import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from edgefl.cli.certificates import remedies
from edgefl.cli.options import fleet_option, json_option
from edgefl.cli.text import printable

if TYPE_CHECKING:
    from edgefl.server.status import DeviceStatus, TrainingStatus, VariantStatus


@click.command()
@json_option
@fleet_option
def status(as_json: bool, fleet_path: Path) -> None:
    """The fleet at a glance: devices, newest variants, trainings, counters.

    Of a training that prunes: which part of the weights that can be pruned is gone, and which part is to be gone in the end. With
    --json also after each round, as a number from 0 to 1.
    """
    from edgefl.server.endings import endings, warnings
    from edgefl.server.status import fleet_status
    from edgefl.store.database import open_database
    from edgefl.store.fleet import Fleet

    fleet = Fleet.open(fleet_path)
    with closing(open_database(fleet.database)) as database:
        now = fleet_status(database, fleet.settings.name)
        now = msgspec.structs.replace(now, warnings=warnings(endings(fleet, database, time.time())))
    if as_json:
        click.echo(msgspec.json.encode(now).decode())
        return
    lines = [f"fleet {now.fleet}: {len(now.devices)} devices, {sum(d.online for d in now.devices)} online"]
    lines += [_device(device, time.time()) for device in now.devices]
    lines += [_variant(variant) for variant in now.variants]
    lines += [_training(training) for training in now.trainings]
    lines += [f"{name}: {value}" for name, value in now.counters.items()]
    for line in lines:
        click.echo(printable(line.rstrip()))
    for line in remedies(now.warnings):
        click.echo(printable(line), err=True)


def _device(device: "DeviceStatus", now: float) -> str:
    presence = "revoked" if device.revoked else "online" if device.online else "offline" if device.seen else "never seen"
    if device.excluded and not device.revoked:
        presence = "excluded"
    ago = "" if device.seen is None else f"{max(0.0, now - device.seen):.0f} s ago"
    doing = f"{device.step} round {device.round}" if device.round else device.step
    doing = doing if device.trains else f"{doing}, does not train".removeprefix(", ")
    models = ", ".join(device.models) or "-"
    return f"{device.id:<16} {device.profile:<18} {presence:<10} {ago:<10} {models:<28} {doing} {device.error}"


def _variant(variant: "VariantStatus") -> str:
    accuracy = "" if variant.accuracy is None else f", accuracy {variant.accuracy:.4f}"
    size = f"{variant.bytes / 1024:.0f} of {variant.budget / 1024:.0f} KiB"
    memory = f", trainer {variant.peak_bytes / 2**20:.0f} MiB" if variant.peak_bytes else ""
    served = "" if variant.trains else ", only served"
    return f"{variant.model}@{variant.version} for {variant.profile}: {variant.variant}{served}, {size}{memory}{accuracy}"


def _training(training: "TrainingStatus") -> str:
    measured = [r.accuracy for r in training.rounds if r.accuracy is not None]
    accuracy = f", accuracy {measured[-1]:.4f}" if measured else ""
    up, down = sum(r.uplink_bytes for r in training.rounds), sum(r.downlink_bytes for r in training.rounds)
    name = f"{training.model}@{training.version}"
    where = f"{training.state}, round {training.round} of {training.last_round}{accuracy}{_pruned(training)}"
    text = f"{name}: {where}, {up} B up, {down} B down"
    if training.bits_per_parameter is None:
        return text
    even = training.fairness
    shares = f"{even.least} to {even.most} updates a device, Jain's index {even.jain:.2f}"
    return f"{text}, {training.bits_per_parameter:.3f} bits a parameter, {shares}"


def _pruned(training: "TrainingStatus") -> str:
    """How much is gone: of a training that is to prune, and of one whose version has been pruned before."""
    target = "" if training.pruning_target is None else f" ({100 * training.pruning_target:.1f} % in the end)"
    if training.pruned is None or not (training.pruned or target):
        return ""
    return f", pruned {100 * training.pruned:.1f} %{target}"
