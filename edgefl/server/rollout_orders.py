"""What an operator can order of rollouts: start, pause, resume, promote, abort, roll back. Each is one transaction.

An order works without a server: it changes rows, and the server tells devices what follows from them as soon as it runs.
"""

import sqlite3
from dataclasses import dataclass

from edgefl.errors import FleetError
from edgefl.identity.repository import listed
from edgefl.rollout_rules import Rules, Target
from edgefl.server.rollout_events import Effect, Ordered, Word
from edgefl.server.rollout_state import OPEN
from edgefl.server.rollouts import advance
from edgefl.store.database import transaction
from edgefl.store.documents import documents
from edgefl.store.registry import get_device
from edgefl.store.releases import go_back, previous_releases, releases
from edgefl.store.rollouts import RolloutRecord, add_rollout, get_rollout, heeded, members
from edgefl.store.versions import LISTED, VersionRecord, get_version, variants
from edgefl.wire.topics import target_path


@dataclass(frozen=True, slots=True)
class Done:
    """A rollout after an order, and what followed."""

    record: RolloutRecord
    effects: tuple[Effect, ...]


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The model's release after a rollback, and the rollouts (their numbers) that it has ended."""

    model: str
    version: int
    ended: tuple[int, ...]


def start_rollout(database: sqlite3.Connection, version: VersionRecord, rules: Rules, target: Target, now: float) -> Done:
    """Start rolling out a version; its first stage is told at once. A running rollout of the model is superseded.

    Raises:
        FleetError: no device is meant, a device does not exist, or the version is the release already.
        StoreError: the database cannot be written now; nothing changed.
    """
    name = f"{version.model}@{version.version}"
    for device in target.devices:
        get_device(database, device)
    with transaction(database):
        history = previous_releases(database, version.model)
        current = releases(database).get(version.model)
        if current == version.version and not target:
            raise FleetError(
                f"{name} is the release already: every device is to hold it",
                remedy="Push with --hold to roll a version out in stages; name devices to try it again there",
            )
        previous = next((one for one in (current, *history) if one not in {None, version.version}), None)
        for number in _open(database, version.model):
            advance(database, get_rollout(database, number), (Ordered("supersede", f"rollout of {name} was started"),), now)
        record = add_rollout(database, (version.model, version.version), previous, rules, target, now)
        if target and not members(database, record):
            raise FleetError(
                f"no device of the fleet is meant: {target}",
                expected=f"valid devices with a profile that {name} was pushed for",
                remedy="See `edgefl devices ls` and `edgefl devices tags`",
            )
        return Done(*advance(database, record, (), now))


def order(database: sqlite3.Connection, model: str, word: Word, now: float) -> Done:
    """Pause, resume, promote or abort the rollout of a model.

    Raises:
        FleetError: the model has no open rollout, or the order is impossible in its phase.
        StoreError: the database cannot be written now; nothing changed.
    """
    with transaction(database):
        numbers = _open(database, model)
        if not numbers:
            raise FleetError(
                f"no rollout of {model!r} is running",
                remedy=f"See `edgefl rollout status`; undo what has ended: edgefl rollback {model}",
            )
        return Done(*advance(database, get_rollout(database, numbers[-1]), (Ordered(word),), now))


def roll_back(database: sqlite3.Connection, model: str, now: float, to: int | None = None) -> RolledBack:
    """Undo the last thing that was said of a model; every device is to hold what was before.

    While a rollout runs, or has finished for some devices only, that is the release. Otherwise it is the release before, which
    becomes the release again. `to` names another version.

    Raises:
        FleetError: there was none before, or no such version.
        StoreError: the database cannot be written now; nothing changed.
    """
    with transaction(database):
        history = previous_releases(database, model)
        current = releases(database).get(model)
        said = [number for number, (_, _, phase) in heeded(database, model).items() if phase != "superseded"]
        records = [get_rollout(database, number) for number in said]
        undone = [one for one in records if one.version != current and (one.is_open or one.target)]
        version = to or (current if undone else next((one for one in history if one != current), None))
        if version is None:
            raise FleetError(
                f"nothing was released of {model!r} before",
                found=f"{model}@{current}" if current else "",
                remedy="Abort a rollout that runs, or push a better version",
            )
        get_version(database, model, version)
        _check_listed(database, model, version)
        ended = [one for one in records if one.version != version or one in undone]
        for record in ended:
            advance(database, record, (Ordered("rollback", f"rolled back to {model}@{version}"),), now)
        go_back(database, model, version, now)
        return RolledBack(model, version, tuple(one.state.id for one in ended))


def _check_listed(database: sqlite3.Connection, model: str, version: int) -> None:
    """Raises FleetError when devices would not believe any manifest of a version any more."""
    known = documents(database)
    paths = {target_path(model, one.profile, version) for one in variants(database, model, version)}
    if known and paths.isdisjoint(listed(known)):
        raise FleetError(
            f"{model}@{version} is too old: the fleet's metadata does not list it any more",
            expected=f"one of the newest {LISTED} versions",
            remedy="Push that model again",
        )


def _open(database: sqlite3.Connection, model: str) -> list[int]:
    return [number for number, (_, _, phase) in heeded(database, model).items() if phase in OPEN]
