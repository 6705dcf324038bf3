"""Distillation of a live fleet's models into each other, on the server's own examples.

Model: of the newest weights of several models comes what they believe together; of that, what each of them learns; and that is
recorded as a round. The members of the ensemble are the widest variants of the models' released versions, with the weights that
devices decode; `server.teaching` teaches every width. The outcome is entered in the ledger as a training of one round that has
ended with these weights (`store.taught`), so that a running server announces them as it announces any final weights, devices
fetch them as such, and the next training goes on from them. No new version is needed: graphs and signatures stay what they are.

Rules: a model that is being trained is left alone; a model that has become worse on the hold-out examples keeps its weights; and
one whose weights others have changed meanwhile, too. Only the portable engine teaches: variants of another engine stay what the
parent makes of them. Nothing here loads torch.
"""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import msgspec
import numpy as np

from edgefl.aggregate.ensemble import Float64, accuracy, fitted, pooled, uniform
from edgefl.errors import ConfigError
from edgefl.examples import Examples
from edgefl.layout import Float32
from edgefl.server.members import Member, members_of, told
from edgefl.server.teaching import taught
from edgefl.server.variants import store_parent
from edgefl.store.blobs import BlobStore
from edgefl.store.database import open_database
from edgefl.store.fleet import Fleet
from edgefl.store.garbage import keeping_new_blobs
from edgefl.store.ledger import Outcome
from edgefl.store.taught import add_round


@dataclass(frozen=True, slots=True)
class Teaching:
    """How an operator wants it.

    Attributes:
        models: two or more, by their names in the fleet.
        unlabelled: examples whose inputs the models learn on.
        labelled: examples that the members are weighed on, and taught on; None leaves them alike.
        holdout: examples that decide whether what was learned is kept; None keeps it.
        epochs: passes over the examples.
        learning_rate: of the versions' own optimisers.
        seed: of the shuffling.
    """

    models: tuple[str, ...]
    unlabelled: Examples
    labelled: Examples | None = None
    holdout: Examples | None = None
    epochs: int = 2
    learning_rate: float = 0.05
    seed: int = 0


class Distilled(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one model.

    Attributes:
        model, version: which.
        round: the number that its new weights have; 0 if it keeps the old ones.
        widths: how many of its variants were taught.
        before, after: accuracy of its widest variant on the hold-out examples, None without them.
        ensemble: accuracy of all models together on them.
    """

    model: str
    version: int
    round: int
    widths: int
    before: float | None
    after: float | None
    ensemble: float | None


def distil(
    fleet: Fleet, teaching: Teaching, *, now: float, on_progress: Callable[[str], None] = lambda _: None
) -> tuple[Distilled, ...]:
    """Let models of a fleet learn from each other.

    Args:
        fleet: whose models.
        teaching: which, on what.
        now: seconds since 1970.
        on_progress: told what is being done, a line at a time.

    Returns:
        What came of each model, in the order of their names.

    Raises:
        ConfigError: fewer than two models, or models that do not answer the same question.
        FleetError: a model is unknown, held back, being trained, or cannot be taught.
        DataError: the examples do not fit a model.
        EngineError: the runtime failed, or a loss is no longer finite.
        ModelError: the new weights of a model cannot be written.
        StoreError: the fleet directory cannot be read or written.
    """
    models = sorted(set(teaching.models))
    if len(models) < 2:
        raise ConfigError("an ensemble needs two models or more", found=", ".join(models))
    blobs = BlobStore(fleet.blobs)
    with closing(open_database(fleet.database)) as database, keeping_new_blobs(blobs):
        members = members_of(database, blobs, models)
        on_progress("asking the models")
        weights = _weights(members, teaching)
        x, soft = _lesson(members, weights, teaching)
        together = _together(members, weights, teaching)
        learned = []
        for place, member in enumerate(members):
            on_progress(f"teaching {member.version.model}@{member.version.version}")
            learned.append(_learned(member, place, x, soft, teaching))
        found = [_recorded(database, blobs, one, new, teaching, now) for one, new in zip(members, learned, strict=True)]
    return tuple(msgspec.structs.replace(one, ensemble=together) for one in found)


def _weights(members: Sequence[Member], teaching: Teaching) -> Float64:
    """One for each member and class."""
    if teaching.labelled is None:
        return uniform(len(members), members[0].classes)
    return fitted(told(members, teaching.labelled), members[0].labels(teaching.labelled))


def _lesson(members: Sequence[Member], weights: Float64, teaching: Teaching) -> tuple[Float32, Float64]:
    """Inputs, and what the ensemble believes of them."""
    kept = [examples for examples in (teaching.labelled, teaching.unlabelled) if examples is not None]
    soft = np.concatenate([pooled(told(members, examples), weights) for examples in kept])
    return np.concatenate([members[0].inputs(examples) for examples in kept]), soft


def _together(members: Sequence[Member], weights: Float64, teaching: Teaching) -> float | None:
    """Accuracy of the ensemble on the hold-out examples."""
    holdout = teaching.holdout
    return None if holdout is None else accuracy(pooled(told(members, holdout), weights), members[0].labels(holdout))


def _learned(member: Member, place: int, x: Float32, soft: Float64, teaching: Teaching) -> Float32:
    """A member's parent after its lessons, which can be written for every variant."""
    inputs = member.inputs(Examples(x, np.zeros(len(x), dtype=np.int64)))
    rate, seed = teaching.learning_rate, (teaching.seed, place)
    parent = taught(member.parent, member.pupils, inputs, soft, epochs=teaching.epochs, learning_rate=rate, seed=seed)
    for variant in member.variants:
        variant.weights(parent)
    return parent


def _recorded(
    database: sqlite3.Connection, blobs: BlobStore, member: Member, parent: Float32, teaching: Teaching, now: float
) -> Distilled:
    """Keep what a model has learned, unless it is worse."""
    version, holdout, number = member.version, teaching.holdout, 0
    before, after = (member.quality(vector, holdout) if holdout else None for vector in (member.parent, parent))
    if before is None or after is None or after.loss <= before.loss:
        measured = (after.accuracy, after.loss) if after else (None, None)
        number = add_round(database, version, member.known, Outcome((), store_parent(blobs, parent), *measured), now)
    return Distilled(
        model=version.model,
        version=version.version,
        round=number,
        widths=len(member.variants),
        before=before.accuracy if before else None,
        after=after.accuracy if after else None,
        ensemble=None,
    )
