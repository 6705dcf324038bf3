"""Weights that no device's update has made: entered in the ledger as a training of one round that has ended with them.

Rule: whoever reads the ledger sees rounds that count on, and the newest parent of the version; nothing else is different.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from edgefl.errors import FleetError
from edgefl.plan import Plan
from edgefl.store.database import transaction
from edgefl.store.ledger import Outcome, is_trained, newest_weights
from edgefl.store.versions import VersionRecord

PLAN = Plan(rounds=1)


@dataclass(frozen=True, slots=True)
class Taught:
    """New weights of a version.

    Attributes:
        version: whose.
        known: SHA-256 of the parent vector that the new one was made from.
        outcome: the new parent, and how good it is; without updates.
    """

    version: VersionRecord
    known: bytes
    outcome: Outcome


def add_rounds(database: sqlite3.Connection, taught: Sequence[Taught], now: float) -> list[int]:
    """Record new weights of several versions, all or none; the numbers of the rounds that they count as.

    Args:
        database: of the fleet.
        taught: at most one of each model.
        now: seconds since 1970.

    Raises:
        FleetError: a model is being trained, or has another newest parent by now; nothing has changed.
        StoreError: it cannot be written now; nothing has changed.
    """
    with transaction(database):
        return [_add(database, one, now) for one in taught]


def _add(database: sqlite3.Connection, one: Taught, now: float) -> int:
    version, outcome = one.version, one.outcome
    if is_trained(database, version.model):
        raise FleetError(
            f"model {version.model!r} is being trained by now; no model has new weights",
            remedy=f"Wait for it, or stop it: edgefl train stop {version.model}; then try again",
        )
    before, weights = newest_weights(database, version)
    if weights != one.known:
        raise FleetError(
            f"the weights of model {version.model!r} have changed meanwhile; no model has new ones from here", remedy="Try again"
        )
    cursor = database.execute(
        "INSERT INTO trainings (model, version, plan, holdout, state, first, started) VALUES (?, ?, ?, '', 'finished', ?, ?)",
        (version.model, version.version, msgspec.msgpack.encode(PLAN), before + 1, now),
    )
    database.execute(
        """INSERT INTO rounds (training, round, opened, closed, weights, result, accuracy, loss, pruned)
           VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)""",
        (cursor.lastrowid, before + 1, now, now, weights, outcome.result, outcome.accuracy, outcome.loss, outcome.pruned),
    )
    return before + 1
