"""What an operator can order of rollouts: start, pause, resume, promote, abort, roll back. Each is one transaction.

An order works without a server: it changes rows, and the server tells devices what follows from them as soon as it runs.
"""

import sqlite3
from dataclasses import dataclass

from edgefl.errors import FleetError
from edgefl.identity.repository import listed
from edgefl.rollout_rules import Rules, Target
from edgefl.server.rollout_events import Effect, Ordered, Word
from edgefl.server.rollouts import advance
from edgefl.store.database import transaction
from edgefl.store.documents import documents
from edgefl.store.registry import get_device, list_devices
from edgefl.store.releases import go_back, previous_releases, releases
from edgefl.store.rollouts import RolloutRecord, add_rollout, get_rollout, heeded, members, open_rollouts
from edgefl.store.tags import all_tags
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
    """Start rolling out a version; its first stage is told at once.

    An open rollout of the model is superseded if it is meant for one of the same devices, or one of the two for all. Others run
    on beside it.

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
        for older in _overlapping(database, version, target):
            advance(database, older, (Ordered("supersede", f"rollout of {name} was started"),), now)
        record = add_rollout(database, (version.model, version.version), previous, rules, target, now)
        if target and not members(database, record):
            raise FleetError(
                f"no device of the fleet is meant: {target}",
                expected=f"valid devices with a profile that {name} was pushed for",
                remedy="See `edgefl devices ls` and `edgefl devices tags`",
            )
        return Done(*advance(database, record, (), now))


def _overlapping(database: sqlite3.Connection, version: VersionRecord, target: Target) -> list[RolloutRecord]:
    """The open rollouts of a version's model that a rollout to this target would meet."""
    running = [get_rollout(database, number) for number in open_rollouts(database, version.model)]
    tags = all_tags(database) if running and target.tags else {}
    meant = {one.id for one in list_devices(database) if target.includes(one.id, one.profile, tags.get(one.id, ()))}
    return [one for one in running if not (target and one.target) or meant & (one.state.devices.keys() | members(database, one))]


def order(database: sqlite3.Connection, model: str, word: Word, now: float, number: int | None = None) -> Done:
    """Pause, resume, promote or abort a rollout of a model; `number` says which, if several are open.

    Raises:
        FleetError: the model has no such open rollout or several, or the order is impossible in its phase.
        StoreError: the database cannot be written now; nothing changed.
    """
    with transaction(database):
        numbers = [one for one in open_rollouts(database, model) if number in {None, one}]
        if len(numbers) > 1:
            every = (get_rollout(database, one) for one in numbers)
            said = " or ".join(f"{one.state.id} ({model}@{one.version} to {one.target})" for one in every)
            raise FleetError(
                f"{len(numbers)} rollouts of {model!r} are running", expected=said, remedy="Say which with --rollout NUMBER"
            )
        if not numbers:
            raise FleetError(
                f"no rollout of {model!r} is running",
                remedy=f"See `edgefl rollout status`; undo what has ended: edgefl rollback {model}",
            )
        return Done(*advance(database, get_rollout(database, numbers[0]), (Ordered(word),), now))


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
