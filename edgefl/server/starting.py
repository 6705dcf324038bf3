"""Starting a training, so that the command may be given again, and does not depend on whether the server has looked meanwhile.

Model: a model has one training at a time. A training of a version that no device is to have any more has ended, whether or not
the server, which writes that down when it looks, runs now; so a push and a start may follow each other at once. A command that
was killed, or whose answer was lost, is given again: the same plan for the same version is the same training.
"""

import sqlite3
from dataclasses import dataclass

from edgefl.codec.marks import gone
from edgefl.errors import FleetError
from edgefl.plan import Plan
from edgefl.server.variants import load_parent
from edgefl.server.wanted import Said
from edgefl.store.blobs import BlobStore
from edgefl.store.ledger import TrainingRecord, end_training, newest_weights, start_training, trainings
from edgefl.store.registry import list_devices
from edgefl.store.versions import VersionRecord


@dataclass(frozen=True, slots=True)
class Begun:
    """A training that runs: its number, and whether it has just been started."""

    training: int
    fresh: bool


def begin_training(database: sqlite3.Connection, version: VersionRecord, plan: Plan, holdout: str, now: float) -> Begun:
    """Let a version be trained with this plan, from now on if it is not already.

    Args:
        database: of the fleet.
        version: what to train.
        plan: how.
        holdout: source of the examples to evaluate on; empty for none.
        now: seconds since 1970.

    Raises:
        FleetError: the model is being trained, with another plan or in a version that devices still have.
        StoreError: the database cannot be used now.
    """
    running = next((one for one in trainings(database, "running") if one.model == version.model), None)
    if running is not None:
        if (running.version, running.plan, running.holdout) == (version.version, plan, holdout):
            return Begun(running.id, fresh=False)
        if _is_wanted(database, running):
            raise _refusal(running, version)
        end_training(database, running.id, "superseded")
    return Begun(start_training(database, version, plan, holdout, now), fresh=True)


def is_pruned(database: sqlite3.Connection, blobs: BlobStore, version: VersionRecord) -> bool:
    """Whether weights are gone from what the next training of a version begins with.

    Raises:
        StoreError: they cannot be read.
    """
    _, newest = newest_weights(database, version)
    return bool(gone(load_parent(blobs, newest), version.layout).any())


def _is_wanted(database: sqlite3.Connection, training: TrainingRecord) -> bool:
    """Whether a device that trains is to have a training's version."""
    said = Said(database, list_devices(database))
    announced = {(one.manifest.model, one.manifest.version) for one in said.announced(said.wanted()) if one.manifest.trains}
    return (training.model, training.version) in announced


def _refusal(running: TrainingRecord, version: VersionRecord) -> FleetError:
    remedy = f"Wait for it, or stop it: edgefl train stop {version.model}"
    if running.version == version.version:
        return FleetError(f"model {version.model!r} is being trained already, with another plan", remedy=remedy)
    return FleetError(
        f"model {version.model!r} is being trained already, in version {running.version}, which devices still have",
        remedy=remedy,
    )
