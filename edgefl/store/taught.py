"""Weights that no device's update has made: entered in the ledger as a training of one round that has ended with them.

Rule: whoever reads the ledger sees rounds that count on, and the newest parent of the version; nothing else is different.
"""

import sqlite3

import msgspec

from edgefl.errors import FleetError
from edgefl.plan import Plan
from edgefl.store.database import transaction
from edgefl.store.ledger import Outcome, is_trained, newest_weights
from edgefl.store.versions import VersionRecord

PLAN = Plan(rounds=1)


def add_round(database: sqlite3.Connection, version: VersionRecord, known: bytes, outcome: Outcome, now: float) -> int:
    """Record new weights of a version; the number of the round that they count as.

    Args:
        database: of the fleet.
        version: whose weights.
        known: SHA-256 of the parent vector that the new one was made from.
        outcome: the new parent, and how good it is; without updates.
        now: seconds since 1970.

    Raises:
        FleetError: the model is being trained, or `known` is not its newest parent any more; nothing has changed.
        StoreError: it cannot be written now; nothing has changed.
    """
    with transaction(database):
        if is_trained(database, version.model):
            raise FleetError(
                f"model {version.model!r} is being trained",
                remedy=f"Wait for it, or stop it: edgefl train stop {version.model}",
            )
        before, weights = newest_weights(database, version)
        if weights != known:
            raise FleetError(f"the weights of model {version.model!r} have changed meanwhile", remedy="Try again")
        number = before + 1
        cursor = database.execute(
            "INSERT INTO trainings (model, version, plan, holdout, state, first, started) VALUES (?, ?, ?, '', 'finished', ?, ?)",
            (version.model, version.version, msgspec.msgpack.encode(PLAN), number, now),
        )
        database.execute(
            """INSERT INTO rounds (training, round, opened, closed, weights, result, accuracy, loss)
               VALUES (?, ?, ?, ?, ?, ?, ?, ?)""",
            (cursor.lastrowid, number, now, now, weights, outcome.result, outcome.accuracy, outcome.loss),
        )
    return number
