"""The models of a live fleet as members of an ensemble: newest weights, and an engine for every width that can be taught."""

import math
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgefl.aggregate.ensemble import Float64
from edgefl.engine.contract import Evaluation
from edgefl.engine.open import open_engine
from edgefl.errors import ConfigError, DataError, FleetError
from edgefl.examples import Examples
from edgefl.layout import Float32, Index
from edgefl.recipe import LESSONS
from edgefl.server.teaching import Pupil, beliefs
from edgefl.server.variants import Variant, load_parent, variant_of
from edgefl.store.blobs import BlobStore
from edgefl.store.ledger import is_trained, newest_weights
from edgefl.store.registry import list_devices
from edgefl.store.versions import VersionRecord, released_version, variants

ENGINE = "portable"
THREADS = 1


@dataclass(frozen=True, slots=True)
class Member:
    """A model that takes part.

    Attributes:
        version: the released one.
        known: SHA-256 of its newest parent vector.
        parent: that vector, float32.
        variants: that can be taught, the widest first, at least one; the first speaks for the model.
        pupils: an engine for each of them.
    """

    version: VersionRecord
    known: bytes
    parent: Float32
    variants: tuple[Variant, ...]
    pupils: tuple[Pupil, ...]

    @property
    def classes(self) -> int:
        """Number of outputs."""
        return self.variants[0].manifest.classes

    def inputs(self, examples: Examples) -> Float32:
        """Inputs in the model's shape. Raises DataError when they do not fit."""
        shape = self.variants[0].manifest.input_shape
        if math.prod(examples.x.shape[1:]) != math.prod(shape):
            raise DataError(
                f"the examples do not fit model {self.version.model!r}",
                expected=f"examples of shape {shape}",
                found=f"{tuple(examples.x.shape[1:])}",
            )
        return np.ascontiguousarray(examples.x.reshape(-1, *shape))

    def labels(self, examples: Examples) -> Index:
        """Class labels, int64. Raises DataError when there are none, or others than the model's."""
        manifest = self.variants[0].manifest
        found: Index = examples.shaped(manifest.input_shape, manifest.classes).y
        return found

    def beliefs(self, examples: Examples) -> Float64:
        """What it believes of examples, with the weights that devices decode, shape `(n, classes)`."""
        return beliefs(self.pupils[0].engine, self.variants[0].as_received(self.parent), self.inputs(examples))

    def quality(self, parent: Float32, examples: Examples) -> Evaluation:
        """How good it would be with these weights."""
        engine = self.pupils[0].engine
        engine.set_vector(self.variants[0].as_received(parent))
        return engine.evaluate(examples)


def members_of(database: sqlite3.Connection, blobs: BlobStore, models: Sequence[str]) -> list[Member]:
    """The members by name, in the order of `models`.

    Raises:
        FleetError: a model is unknown, held back, in training, or cannot be taught.
        ConfigError: they do not have the same number of classes.
        StoreError: their files cannot be read.
    """
    members = [_member(database, blobs, model) for model in models]
    if len({member.classes for member in members}) > 1:
        found = ", ".join(f"{member.version.model}: {member.classes}" for member in members)
        raise ConfigError("models with different classes make no ensemble", found=found)
    return members


def told(members: Sequence[Member], examples: Examples) -> Float64:
    """What each member believes of examples, shape `(members, n, classes)`."""
    return np.stack([member.beliefs(examples) for member in members])


def _member(database: sqlite3.Connection, blobs: BlobStore, model: str) -> Member:
    version = released_version(database, model)
    if is_trained(database, model):
        raise FleetError(f"model {model!r} is being trained", remedy=f"Wait for it, or stop it: edgefl train stop {model}")
    teachable = _teachable(database, version)
    if not teachable:
        raise FleetError(
            f"{model}@{version.version} cannot be taught",
            expected=f"a variant of the engine {ENGINE} with the loss {' or '.join(LESSONS)}",
            remedy="Push it so for one of the profiles",
        )
    known = newest_weights(database, version)[1]
    devices = _devices(database, version)
    ordered = tuple(sorted(teachable.values(), key=lambda variant: -variant.layout.size))
    engines = [open_engine(variant.files(blobs), threads=THREADS) for variant in ordered]
    pupils = tuple(Pupil(e, v.index, max(1.0, devices[v.name])) for e, v in zip(engines, ordered, strict=True))
    return Member(version, known, load_parent(blobs, known), ordered, pupils)


def _teachable(database: sqlite3.Connection, version: VersionRecord) -> Mapping[str, Variant]:
    """The distinct variants of a version that can be taught, by name."""
    found: dict[str, Variant] = {}
    for record in variants(database, version.model, version.version):
        manifest = record.manifest
        if manifest.engine == ENGINE and manifest.recipe.loss in LESSONS and manifest.variant not in found:
            found[manifest.variant] = variant_of(version, record)
    return found


def _devices(database: sqlite3.Connection, version: VersionRecord) -> Counter[str]:
    """How many valid devices have each variant."""
    profiles = Counter(device.profile for device in list_devices(database) if device.revoked is None)
    found: Counter[str] = Counter()
    for record in variants(database, version.model, version.version):
        found[record.manifest.variant] += profiles[record.profile]
    return found
