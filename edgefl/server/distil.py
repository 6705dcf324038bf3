"""Distillation of a live fleet's models into each other, on the server's own examples.

Model: of the newest weights of several models comes what they believe together; of that, what each of them learns; and that is
recorded as a round. The members of the ensemble are the widest variants of the models' released versions, with the weights that
devices decode; `server.teaching` teaches every width. The outcome is entered in the ledger as a training of one round that has
ended with these weights (`store.ledger.add_round`), so that a running server announces them as it announces any final weights,
devices fetch them as such, and the next training goes on from them. No new version is needed: graphs and signatures stay what
they are.

Rules: a model that is being trained is left alone; a model that has become worse on the hold-out examples keeps its weights; and
one whose weights others have changed meanwhile, too. Only the portable engine teaches: variants of another engine stay what the
parent makes of them. Nothing here loads torch.
"""

import math
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import msgspec
import numpy as np

from edgefl.aggregate.ensemble import Float64, accuracy, fitted, pooled, uniform
from edgefl.codec.weights import Precision
from edgefl.engine.contract import Engine, Evaluation
from edgefl.engine.open import open_engine
from edgefl.errors import ConfigError, DataError, FleetError
from edgefl.examples import Examples
from edgefl.layout import Float32, nested_index
from edgefl.server.teaching import Pupil, beliefs, taught
from edgefl.server.variants import Variant, load_parent, store_parent
from edgefl.store.blobs import BlobStore
from edgefl.store.database import open_database
from edgefl.store.fleet import Fleet
from edgefl.store.garbage import keeping_new_blobs
from edgefl.store.ledger import Outcome, add_round, is_trained, newest_weights
from edgefl.store.registry import list_devices
from edgefl.store.versions import VersionRecord, released_version, variants

ENGINE = "portable"
THREADS = 1


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
        widths: variants that were taught.
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


@dataclass(slots=True)
class _Member:
    """A model that takes part: its version, its newest weights and the variants that can be taught, the widest first."""

    version: VersionRecord
    known: bytes
    parent: Float32
    taught: list[Variant]
    pupils: list[Pupil] = field(default_factory=list)

    @property
    def engine(self) -> Engine:
        return self.pupils[0].engine

    @property
    def shape(self) -> tuple[int, ...]:
        return self.taught[0].manifest.input_shape

    def beliefs(self, examples: Examples) -> Float64:
        return beliefs(self.engine, self.taught[0].as_received(self.parent), _inputs(examples, self))

    def quality(self, parent: Float32, holdout: Examples) -> Evaluation:
        self.engine.set_vector(self.taught[0].as_received(parent))
        return self.engine.evaluate(holdout)


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
        FleetError: a model is unknown, held back, being trained, or has no variant of the portable engine.
        DataError: the examples do not fit a model.
        EngineError: the runtime failed, or a loss is no longer finite.
        ModelError: the new weights of a model cannot be written.
        StoreError: the fleet directory cannot be read or written.
    """
    if len(set(teaching.models)) < 2:
        raise ConfigError("an ensemble needs two models or more", found=", ".join(teaching.models))
    blobs = BlobStore(fleet.blobs)
    with closing(open_database(fleet.database)) as database, keeping_new_blobs(blobs):
        members = [_member(database, blobs, model) for model in sorted(set(teaching.models))]
        _check_alike(members)
        on_progress("asking the models")
        x, soft = _lesson(members, teaching)
        together = _together(members, teaching)
        found = []
        for place, member in enumerate(members):
            on_progress(f"teaching {member.version.model}@{member.version.version}")
            found.append(_taught(member, place, x, soft, teaching))
        return tuple(
            _recorded(database, blobs, member, parent, teaching, together, now)
            for member, parent in zip(members, found, strict=True)
        )


def _member(database: sqlite3.Connection, blobs: BlobStore, model: str) -> _Member:
    """A model with its newest weights."""
    version = released_version(database, model)
    if is_trained(database, model):
        raise FleetError(
            f"model {model!r} is being trained",
            remedy=f"Wait for it, or stop it: edgefl train stop {model}",
        )
    name = f"{model}@{version.version}"
    devices: dict[str, int] = {}
    for device in list_devices(database):
        devices[device.profile] = devices.get(device.profile, 0) + (device.revoked is None)
    counts: dict[str, int] = {}
    chosen: dict[str, Variant] = {}
    for record in variants(database, model, version.version):
        manifest = record.manifest
        if manifest.recipe.loss != "cross-entropy":
            raise FleetError(f"{name} does not classify", expected="the loss cross-entropy", found=manifest.recipe.loss)
        counts[manifest.variant] = counts.get(manifest.variant, 0) + devices.get(record.profile, 0)
        if manifest.engine == ENGINE:
            index = nested_index(version.layout, manifest.layout)
            chosen[manifest.variant] = Variant(manifest.variant, manifest, Precision(record.precision), index)
    if not chosen:
        raise FleetError(
            f"{name} has no variant of the engine {ENGINE}, which alone can be taught",
            remedy="Push it for a profile with that engine, too",
        )
    known = newest_weights(database, version)[1]
    ordered = sorted(chosen.values(), key=lambda variant: -variant.layout.size)
    member = _Member(version, known, load_parent(blobs, known), ordered)
    for variant in ordered:
        engine = open_engine(variant.files(blobs), threads=THREADS)
        member.pupils.append(Pupil(engine, variant.index, max(1.0, counts[variant.name])))
    return member


def _check_alike(members: Sequence[_Member]) -> None:
    classes = {member.version.model: member.taught[0].manifest.classes for member in members}
    if len(set(classes.values())) > 1:
        found = ", ".join(f"{model}: {count}" for model, count in classes.items())
        raise ConfigError("models with different classes make no ensemble", found=found)


def _inputs(examples: Examples, member: _Member) -> Float32:
    """Inputs in a member's shape. Raises DataError."""
    if math.prod(examples.x.shape[1:]) != math.prod(member.shape):
        raise DataError(
            f"the examples do not fit model {member.version.model!r}",
            expected=f"examples of shape {member.shape}",
            found=f"{tuple(examples.x.shape[1:])}",
        )
    return np.ascontiguousarray(examples.x.reshape(-1, *member.shape))


def _told(members: Sequence[_Member], examples: Examples) -> Float64:
    """What each member believes, shape `(members, n, classes)`."""
    return np.stack([member.beliefs(examples) for member in members])


def _weights(members: Sequence[_Member], teaching: Teaching) -> Float64:
    """One for each member and class."""
    classes = members[0].taught[0].manifest.classes
    if teaching.labelled is None:
        return uniform(len(members), classes)
    return fitted(_told(members, teaching.labelled), _labels(teaching.labelled, members[0]))


def _labels(examples: Examples, member: _Member) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    manifest = member.taught[0].manifest
    labels: np.ndarray[tuple[int], np.dtype[np.int64]] = examples.shaped(manifest.input_shape, manifest.classes).y
    return labels


def _lesson(members: Sequence[_Member], teaching: Teaching) -> tuple[Float32, Float64]:
    """Inputs, and what the ensemble believes of them."""
    kept = [examples for examples in (teaching.labelled, teaching.unlabelled) if examples is not None]
    weights = _weights(members, teaching)
    soft = np.concatenate([pooled(_told(members, examples), weights) for examples in kept])
    return np.concatenate([_inputs(examples, members[0]) for examples in kept]), soft


def _together(members: Sequence[_Member], teaching: Teaching) -> float | None:
    """Accuracy of the ensemble on the hold-out examples."""
    if teaching.holdout is None:
        return None
    found = pooled(_told(members, teaching.holdout), _weights(members, teaching))
    return accuracy(found, _labels(teaching.holdout, members[0]))


def _taught(member: _Member, place: int, x: Float32, soft: Float64, teaching: Teaching) -> Float32:
    seed, rate = (teaching.seed, place), teaching.learning_rate
    parent = taught(member.parent, member.pupils, x, soft, epochs=teaching.epochs, learning_rate=rate, seed=seed)
    for variant in member.taught:
        variant.weights(parent)  # refuses what no device could be sent
    return parent


def _recorded(
    database: sqlite3.Connection,
    blobs: BlobStore,
    member: _Member,
    parent: Float32,
    teaching: Teaching,
    together: float | None,
    now: float,
) -> Distilled:
    """Keep what a model has learned, unless it is worse."""
    before = after = None
    if teaching.holdout is not None:
        before, after = (member.quality(vector, teaching.holdout) for vector in (member.parent, parent))
    number = 0
    if before is None or after is None or after.loss <= before.loss:
        found = (after.accuracy, after.loss) if after else (None, None)
        outcome = Outcome((), store_parent(blobs, parent), *found)
        number = add_round(database, member.version, member.known, outcome, now)
    return Distilled(
        model=member.version.model,
        version=member.version.version,
        round=number,
        widths=len(member.taught),
        before=before.accuracy if before else None,
        after=after.accuracy if after else None,
        ensemble=together,
    )
