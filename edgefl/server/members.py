"""The models of a live fleet as members of an ensemble: newest weights, every variant to judge them by, and who can be taught.

Model: what a variant computes is asked of its forward graphs, which every engine's variants have and any ONNX Runtime runs; so a
model is heard and judged by all of them, with the weights that devices hold: before any round those of the push, which may have
been retrained where the parent has not; then what they decode of the newest round, which behind a sparse downlink is not yet the
parent. Lessons go on from the parent itself. They need a training step that weighs examples, which the portable engine alone has.
"""

import math
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgefl.aggregate.ensemble import Float64, probabilities
from edgefl.engine.contract import Evaluation
from edgefl.engine.inference import Inference
from edgefl.engine.open import open_engine
from edgefl.errors import ConfigError, DataError, FleetError
from edgefl.examples import Examples
from edgefl.layout import Float32, Index
from edgefl.recipe import LESSONS
from edgefl.server.teaching import Pupil
from edgefl.server.variants import Variant, load_parent, load_variants
from edgefl.store.blobs import BlobStore
from edgefl.store.ledger import is_trained, newest_held, newest_weights
from edgefl.store.registry import list_devices
from edgefl.store.versions import VersionRecord, released_version, variants
from edgefl.wire.releases import Manifest

ENGINE = "portable"
THREADS = 1


@dataclass(frozen=True, slots=True)
class Voice:
    """A variant of any engine, to be asked what it computes.

    Attributes:
        variant: which.
        forward: its graphs for evaluation and prediction.
        held: the vector that its devices compute with now, float32, of the variant's layout.
    """

    variant: Variant
    forward: Inference
    held: Float32

    def beliefs(self, x: Float32) -> Float64:
        """The probabilities that it gives inputs of its own shape now, `(n, classes)`."""
        return probabilities(self.forward.predict(self.variant.layout.views(self.held), x))

    def quality(self, examples: Examples) -> Evaluation:
        """How good it is now."""
        return self.forward.evaluate(self.variant.layout.views(self.held), examples)

    def quality_with(self, parent: Float32, examples: Examples) -> Evaluation:
        """How good it would be with what devices decode of another parent vector."""
        return self.forward.evaluate(self.variant.layout.views(self.variant.as_received(parent)), examples)


@dataclass(frozen=True, slots=True)
class Member:
    """A model that takes part.

    Attributes:
        version: the released one.
        known: SHA-256 of its newest parent vector.
        parent: that vector, float32.
        voices: every variant, the widest first; the first speaks for the model.
        pupils: an engine for each variant that can be taught, at least one.
    """

    version: VersionRecord
    known: bytes
    parent: Float32
    voices: tuple[Voice, ...]
    pupils: tuple[Pupil, ...]

    @property
    def name(self) -> str:
        """Model and version, as people write them."""
        return f"{self.version.model}@{self.version.version}"

    @property
    def classes(self) -> int:
        """Number of outputs."""
        return self.voices[0].variant.manifest.classes

    def inputs(self, examples: Examples) -> Float32:
        """Inputs in the model's shape. Raises DataError when they do not fit."""
        shape = self.voices[0].variant.manifest.input_shape
        if math.prod(examples.x.shape[1:]) != math.prod(shape):
            raise DataError(
                f"the examples do not fit model {self.version.model!r}",
                expected=f"examples of shape {shape}",
                found=f"{tuple(examples.x.shape[1:])}",
            )
        return np.ascontiguousarray(examples.x.reshape(-1, *shape))

    def labels(self, examples: Examples) -> Index:
        """Class labels, int64. Raises DataError when there are none, or others than the model's."""
        manifest = self.voices[0].variant.manifest
        found: Index = examples.shaped(manifest.input_shape, manifest.classes).y
        return found

    def beliefs(self, examples: Examples) -> Float64:
        """What it believes of examples, shape `(n, classes)`."""
        return self.voices[0].beliefs(self.inputs(examples))

    def check(self, parent: Float32) -> None:
        """Whether these weights can be written for every variant. Raises ModelError."""
        for voice in self.voices:
            voice.variant.weights(parent)


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
    teachable = load_variants(database, version, blobs, _is_teachable).values()
    if not teachable:
        raise FleetError(
            f"{model}@{version.version} cannot be taught",
            expected=f"a variant of the engine {ENGINE} with the loss {' or '.join(LESSONS)}",
            remedy="Push it so for one of the profiles",
        )
    number, known = newest_weights(database, version)
    parent = load_parent(blobs, known)
    devices = _devices(database, version)
    distinct = load_variants(database, version, blobs).values()
    sent = newest_held(database, version)
    last = parent if sent is None else load_parent(blobs, sent)
    held = [variant.as_received(last) if number else variant.as_pushed(blobs) for variant in distinct]
    voices = tuple(Voice(one, Inference(one.files(blobs), THREADS), now) for one, now in zip(distinct, held, strict=True))
    pupils = tuple(
        Pupil(open_engine(variant.files(blobs), threads=THREADS), variant.index, max(1.0, devices[variant.name]), variant.healed)
        for variant in teachable
    )
    return Member(version, known, parent, voices, pupils)


def _is_teachable(manifest: Manifest) -> bool:
    return manifest.engine == ENGINE and manifest.recipe.loss in LESSONS


def _devices(database: sqlite3.Connection, version: VersionRecord) -> Counter[str]:
    """How many valid devices train each variant."""
    profiles = Counter(device.profile for device in list_devices(database) if device.revoked is None)
    found: Counter[str] = Counter()
    for record in variants(database, version.model, version.version):
        found[record.manifest.variant] += profiles[record.profile] if record.manifest.trains else 0
    return found
