"""The plan that an operator asks for: a file, the options that win over it, and whether the fleet can follow it.

Model: what is asked for becomes a `Plan`, with a cohort that the fleet has, and is checked against the version that is to be
trained: its devices, its recipe, its variants' precisions and their room.

Rule: a plan that cannot work is refused before anything is written, with the option or the push that would make it work.
"""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgefl.codec.memory import memory_bytes
from edgefl.codec.precision import in_rounds
from edgefl.codec.weights import TRAINABLE, Precision, weights_length
from edgefl.compress.budget import ROUND_FILES
from edgefl.errors import ConfigError, FleetError
from edgefl.feasible import check_fleet
from edgefl.plan import Count, Plan
from edgefl.recipe import Recipe
from edgefl.sources.parse import absolute, open_source
from edgefl.store.versions import VariantRecord, VersionRecord, budgets, participants, variants
from edgefl.strict_toml import read_toml


class PlanFile(Plan, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A plan as it stands in a file: without a cohort it is 0, which means all devices that can take part."""

    cohort: Count = 0


def planned(database: sqlite3.Connection, version: VersionRecord, file: Path | None, given: dict[str, Any]) -> Plan:
    """The plan in a file with the given options, checked against the fleet. Raises ConfigError or FleetError."""
    base = read_toml(file, PlanFile, ConfigError) if file else PlanFile()
    able = participants(database, version)
    name, remedy = f"{version.model}@{version.version}", "See `edgefl train start --help`"
    if able == 0:
        raise _nobody(database, version)
    values = msgspec.to_builtins(base) | given
    _gather(values, "pruning", "pruning_", switch="target")
    _gather(values, "jump_start", "jump_", switch="devices")
    if not values["cohort"] and "cohort" not in given:
        values["cohort"] = max(1, round(able * min(1.0, float(values["fraction"]))))
    try:
        plan = msgspec.convert(values, Plan)
    except msgspec.ValidationError as error:
        raise ConfigError("the plan is impossible", found=str(error), remedy=remedy) from None
    if plan.quorum > min(plan.cohort, able):
        few = f"at most {min(plan.cohort, able)}, for a cohort of {plan.cohort} and {able} devices"
        raise ConfigError("the plan's quorum cannot be reached", expected=few, found=str(plan.quorum), remedy=remedy)
    if plan.aggregator == "root-set":
        raise ConfigError("the aggregator root-set needs examples on the server, which only a simulation has", remedy=remedy)
    records = [record for record in variants(database, version.model, version.version) if record.manifest.trains]
    if plan.pruning:
        _check_pruning(name, [record.precision for record in records])
    _check_recipes(plan, name, [record.manifest.recipe for record in records])
    if plan.correction:
        _check_room(records, budgets(database, version.model, version.version))
    check_fleet(plan, able, [version.layout])
    return plan


def _nobody(database: sqlite3.Connection, version: VersionRecord) -> FleetError:
    """Why no device can train a version."""
    name = f"{version.model}@{version.version}"
    if any(not record.manifest.trains for record in variants(database, version.model, version.version)):
        return FleetError(
            f"no device of the fleet can train {name}",
            expected="a board whose profile trains",
            found="profiles with the engine inference, which only answer",
            remedy="Provision boards with a profile that trains, then push for it",
        )
    return FleetError(f"no device of the fleet can train {name}", remedy="Provision devices, then push for their profiles")


def _gather(values: dict[str, Any], table: str, prefix: str, *, switch: str) -> None:
    """Move options into the plan's table that they belong to; without any it stays, with 0 for its switch it goes.

    Raises:
        ConfigError: there are some, but neither the switch nor the plan file has asked for the table.
    """
    given = {name: values.pop(name) for name in tuple(values) if name.startswith(prefix) and name != table}
    asked = {name.removeprefix(prefix): value for name, value in given.items()}
    if asked and switch not in asked and values[table] is None:
        missing, names = f"--{table.replace('_', '-')}", ", ".join(f"--{name.replace('_', '-')}" for name in given)
        remedy = f"Add {missing}, or a table [{table}] in the plan file"
        raise ConfigError(f"{names} without {missing}: there is nothing to change", remedy=remedy)
    if asked:
        values[table] = None if asked.get(switch) == 0 else {**(values[table] or {}), **asked}


def _check_pruning(name: str, precisions: Sequence[str]) -> None:
    """Refuse pruning where the weights' files cannot say what is gone. Raises ConfigError."""
    if others := sorted(set(precisions) - set(TRAINABLE)):
        raise ConfigError(
            f"{name} has variants that cannot be pruned while they train",
            expected=f"weights in {', '.join(TRAINABLE)}",
            found=", ".join(others),
            remedy="Train without --pruning, or push a smaller model",
        )


def _check_recipes(plan: Plan, name: str, recipes: Sequence[Recipe]) -> None:
    """Refuse a plan that a version's graphs cannot follow. Raises ConfigError."""
    if plan.proximal > 0.0 and not all(recipe.proximal for recipe in recipes):
        raise ConfigError(f"{name} has no proximal term", remedy="Push it again with --proximal")
    if plan.ramp and not all(recipe.mutual for recipe in recipes):
        remedy = "Push it again with --loss self-distillation, or train without ramp"
        raise ConfigError(f"{name} has no weight for what its exits learn of each other", remedy=remedy)
    others = sorted({recipe.optimizer for recipe in recipes} - {"sgd"})
    if plan.rate == "curvature" and others:
        raise ConfigError(
            f"{name} cannot measure the curvature of its loss",
            expected="a version whose optimiser is plain SGD",
            found=", ".join(others),
            remedy="Use --rate fixed or --rate loss, or push it with --optimizer sgd",
        )


def _check_room(records: Sequence[VariantRecord], room: dict[str, int]) -> None:
    """Refuse momentum correction where its velocity does not fit beside what a round stores anyway. Raises ConfigError."""
    for record in records:
        manifest = record.manifest
        weights = ROUND_FILES * weights_length(manifest.layout, in_rounds(Precision(record.precision)))
        need = manifest.total_bytes + weights + memory_bytes(manifest.layout, correction=True)
        if need > room[record.profile]:
            raise ConfigError(
                f"the momentum of the plan's correction does not fit profile {record.profile}",
                expected=f"at most {room[record.profile]} bytes",
                found=f"{need} bytes",
                remedy="Train without correction, or push a smaller model",
            )


def checked_holdout(database: sqlite3.Connection, version: VersionRecord, source: str) -> str:
    """The source as the server, which runs elsewhere, can load it; it exists and fits the model. Raises DataError."""
    text = absolute(source)
    manifest = variants(database, version.model, version.version)[0].manifest
    open_source(text).load().shaped(manifest.input_shape, manifest.classes, manifest.recipe.loss)
    return text
