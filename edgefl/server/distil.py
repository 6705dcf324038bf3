"""Distillation of a live fleet's models into each other, on the server's own examples.

Model: of the newest weights of several models comes what they believe together; of that, what each of them learns; and that is
recorded as a round. The members of the ensemble are the widest variants of the models' released versions, with the weights that
devices decode; `server.teaching` teaches every width. The outcome is entered in the ledger as a training of one round that has
ended with these weights (`store.taught`), so that a running server announces them as it announces any final weights, devices
fetch them as such, and the next training goes on from them. No new version is needed: graphs and signatures stay what they are.

Rules: a model that is being trained is left alone; a model keeps its weights if any of its variants, of whichever engine, has
become worse on the hold-out examples. Everything is recorded in one transaction at the end: whatever fails before, or if others
have changed a model's weights meanwhile, no model is changed, and the same command may be given again. Only the portable engine
teaches: variants of another engine stay what the parent makes of them. Nothing here loads torch.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import msgspec
import numpy as np

from edgefl.aggregate.ensemble import Float64, accuracy, fitted, pooled, uniform
from edgefl.compress.magnitude import share_gone
from edgefl.engine.contract import Evaluation
from edgefl.errors import ConfigError, EdgeflError
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
from edgefl.store.taught import Taught, add_rounds


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
        worse: names of its variants, taught or not, that the lessons make worse on the hold-out examples; none without them.
        before, after: accuracy of its widest variant on the hold-out examples, None without them.
        ensemble: accuracy of all models together on them.
    """

    model: str
    version: int
    round: int
    widths: int
    worse: tuple[str, ...]
    before: float | None
    after: float | None
    ensemble: float | None


@dataclass(frozen=True, slots=True)
class Learned:
    """A member after its lessons.

    Attributes:
        member: which.
        parent: its new parent vector.
        before, after: quality of its widest variant on the hold-out examples, None without them.
        worse: names of the variants that have become worse.
    """

    member: Member
    parent: Float32
    before: Evaluation | None = None
    after: Evaluation | None = None
    worse: tuple[str, ...] = ()

    @property
    def measured(self) -> tuple[float | None, float | None]:
        """Accuracy and loss as the ledger takes them."""
        return (None, None) if self.after is None else (self.after.accuracy, self.after.loss)


def distil(
    fleet: Fleet, teaching: Teaching, *, now: float, on_progress: Callable[[str], None] = lambda _: None
) -> tuple[Distilled, ...]:
    """Let models of a fleet learn from each other. After an error no model has changed.

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
            on_progress(f"teaching {member.name}")
            with _about(member):
                learned.append(_judged(member, _learned(member, place, x, soft, teaching), teaching))
        rounds = _recorded(database, blobs, learned, now)
    return tuple(_said(one, rounds, together) for one in learned)


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
    layout, rate, seed = member.version.layout, teaching.learning_rate, (teaching.seed, place)
    parent = taught(member.parent, layout, member.pupils, inputs, soft, epochs=teaching.epochs, learning_rate=rate, seed=seed)
    member.check(parent)
    return parent


def _judged(member: Member, parent: Float32, teaching: Teaching) -> Learned:
    """What the lessons have made of every variant."""
    holdout = teaching.holdout
    if holdout is None:
        return Learned(member, parent)
    pairs = [(voice.quality(holdout), voice.quality_with(parent, holdout)) for voice in member.voices]
    worse = [one.variant.name for one, (before, after) in zip(member.voices, pairs, strict=True) if not after.loss <= before.loss]
    return Learned(member, parent, *pairs[0], tuple(worse))


def _recorded(database: sqlite3.Connection, blobs: BlobStore, learned: Sequence[Learned], now: float) -> Mapping[str, int]:
    """Keep what the models have learned that have not become worse; the numbers of their rounds by model."""
    new = [Taught(one.member.version, one.member.known, _outcome(blobs, one)) for one in learned if not one.worse]
    return dict(zip((one.version.model for one in new), add_rounds(database, new, now), strict=True))


def _outcome(blobs: BlobStore, one: Learned) -> Outcome:
    accuracy, loss = one.measured
    pruned = share_gone(one.parent, one.member.version.layout)
    return Outcome((), store_parent(blobs, one.parent), accuracy, loss, pruned=pruned)


def _said(one: Learned, rounds: Mapping[str, int], ensemble: float | None) -> Distilled:
    version = one.member.version
    return Distilled(
        model=version.model,
        version=version.version,
        round=rounds.get(version.model, 0),
        widths=len(one.member.pupils),
        worse=one.worse,
        before=one.before.accuracy if one.before else None,
        after=one.after.accuracy if one.after else None,
        ensemble=ensemble,
    )


@contextmanager
def _about(member: Member) -> Iterator[None]:
    """Let an error say whose lessons failed, and that nothing has come of anybody's."""
    try:
        yield
    except EdgeflError as error:
        error.problem = f"the lessons of {member.name} failed, and no model has been changed: {error.problem}"
        raise
