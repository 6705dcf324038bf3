"""The variants of one version as the server sees them: views of one parent vector, and what is sent of it to each.

Model: profiles whose variant has the same name share layout, precision and therefore round orders and weight files. The index map
of a variant says where its coordinates lie in the parent.

A variant that was retrained for the push (a codebook, ADR 0025) is *healed*: its weights are not the parent's. While the parent
has not moved since the push, its round file is the file that was pushed, which its devices hold. From then on it is of the parent
with a share of the healing, the difference that retraining has made, which fades as the parent moves, because the fleet's own
learning heals better. What its devices learn, a difference too, moves the parent as that of any other variant.
"""

import math
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edgefl.codec.marks import gone, marked
from edgefl.codec.precision import ROUNDS, in_rounds
from edgefl.codec.weights import Precision, decode_weights, encode_weights
from edgefl.compress.axes import index_from_axes
from edgefl.engine.contract import VariantFiles
from edgefl.layout import Float32, Index, Layout, nested_index
from edgefl.store.blobs import BlobStore
from edgefl.store.versions import VariantRecord, VersionRecord, variants
from edgefl.wire.releases import Manifest

FADE = 0.1
"""The share of a healing is `exp(-moved / FADE)`, `moved` being the length of the parent's way since the push in healings."""
LARGEST = 1e30
"""Leaves float32 room for the sums of a forward pass."""
TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Healed:
    """What a push has retrained.

    Attributes:
        file: the weights file as it was pushed.
        weights: what it holds, float32.
        cut: the variant's part of the parent as it was pushed, float32.
    """

    file: bytes
    weights: Float32
    cut: Float32

    def moved(self, part: Float32) -> bool:
        """Whether the variant's part of the parent is another by now, be it by a mark."""
        return not np.array_equal(part.view(np.uint32), self.cut.view(np.uint32))

    def after(self, part: Float32, layout: Layout) -> Float32:
        """The weights when the variant's part of the parent is this one; what is gone from that is gone."""
        if not self.moved(part):
            return self.weights
        healing = self.weights - self.cut
        way = _learned(part - self.cut, layout) / max(_learned(healing, layout), TINY)
        share = np.float32(round(math.exp(-way / FADE), 3))  # rounded, so that it is the same after a restart elsewhere
        vector = part + share * healing
        for tensor, place in layout.slices():
            if tensor.role == "state":  # statistics lie between the two: a variance is not to become negative
                vector[place] = part[place] + share * (self.weights[place] - part[place])
        return marked(vector, gone(part, layout))


@dataclass(frozen=True, slots=True)
class Variant:
    """One structure of a version.

    Attributes:
        name: for example `w0.5-int8`.
        manifest: of one of the profiles that have it; layout and evaluation graphs are those of all.
        precision: of the weight files of its rounds.
        index: int64, the parent coordinate of each of its coordinates.
        healed: what its weights are if the push has retrained them; None if they are the parent's.
    """

    name: str
    manifest: Manifest
    precision: Precision
    index: Index
    healed: Healed | None = None

    @property
    def layout(self) -> Layout:
        """Layout of its flat vector."""
        return self.manifest.layout

    @property
    def sent(self) -> Index:
        """int64: the parent coordinate of each coordinate of its updates; frozen and personal tensors are in none."""
        shared = self.layout.shared()
        return self.index if shared is None else self.index[shared]

    def vector(self, parent: Float32) -> Float32:
        """Its weights when those of the parent are these, before they are written."""
        part = parent[self.index]
        return self.healed.after(part, self.layout) if self.healed else part

    def weights(self, parent: Float32) -> bytes:
        """The weight file that its devices get of a parent vector in a round."""
        if self.healed and not self.healed.moved(parent[self.index]):
            return self.healed.file
        return encode_weights(self.vector(parent), self.layout, self.precision)

    def as_received(self, parent: Float32) -> Float32:
        """Its vector after a trip through the weight file of a round: what a device computes with."""
        return decode_weights(self.weights(parent), self.layout)

    def as_pushed(self, blobs: BlobStore) -> Float32:
        """Its vector as the push has made it, which devices compute with before any round.

        Raises:
            StoreError: the file is missing or damaged.
        """
        return decode_weights(blobs.get(self.manifest.file("weights").sha256), self.layout)

    def files(self, blobs: BlobStore) -> VariantFiles:
        """The variant on this machine's disk, for evaluation."""
        paths = {ref.role: blobs.path(ref.sha256) for ref in self.manifest.files}
        m = self.manifest
        return VariantFiles(m.engine, m.layout, m.input_shape, m.classes, m.batch, paths, m.recipe)


def _learned(change: Float32, layout: Layout) -> float:
    """Euclidean length of what devices have learned together; not by BLAS, whose threads add up in any order.

    Statistics are left out: they are as large as the inputs, and no learning.
    """
    of = (change[place] for tensor, place in layout.slices() if tensor.role == "trained" and tensor.shared)
    return math.sqrt(sum(float(np.square(one, dtype=np.float64).sum()) for one in of))


def largest_weight(precision: Precision) -> float:
    """Magnitude up to which a weight can be written and computed with."""
    return float(np.finfo(np.float16).max) if precision == Precision.FP16 else LARGEST


def load_variants(
    database: sqlite3.Connection, version: VersionRecord, blobs: BlobStore, wanted: Callable[[Manifest], bool] = lambda _: True
) -> Mapping[str, Variant]:
    """The distinct variants of a version that take part in rounds, by name, the widest first.

    Args:
        database: of the fleet.
        version: whose.
        blobs: that hold its files.
        wanted: which manifests count; all by default.

    Raises:
        StoreError: healed weights cannot be read.
    """
    found: dict[str, Variant] = {}
    for record in variants(database, version.model, version.version):
        manifest = record.manifest
        if manifest.trains and manifest.variant not in found and wanted(manifest):
            found[manifest.variant] = _variant(version, record, blobs)
    return dict(sorted(found.items(), key=lambda item: -item[1].layout.size))


def _variant(version: VersionRecord, record: VariantRecord, blobs: BlobStore) -> Variant:
    """What a version has for one profile."""
    manifest, precision = record.manifest, Precision(record.precision)
    index = _index(version.layout, manifest.layout, record.axes)
    healed = None
    if precision not in ROUNDS:
        file = blobs.get(manifest.file("weights").sha256)
        healed = Healed(file, decode_weights(file, manifest.layout), load_parent(blobs, version.weights)[index])
    return Variant(manifest.variant, manifest, in_rounds(precision), index, healed)


def _index(parent: Layout, child: Layout, axes: bytes | None) -> Index:
    """Where a variant lies in its parent: in the rows that were written down at the push, or in the leading corner."""
    return nested_index(parent, child) if axes is None else index_from_axes(parent, child, axes)


def variant_of_profile(database: sqlite3.Connection, version: VersionRecord) -> Mapping[str, str]:
    """The name of the variant that a version has for each profile whose boards train."""
    made = variants(database, version.model, version.version)
    return {record.profile: record.manifest.variant for record in made if record.manifest.trains}


def load_parent(blobs: BlobStore, sha256: bytes) -> Float32:
    """A parent vector from the blob store.

    Raises:
        StoreError: it is missing or damaged.
    """
    return np.frombuffer(blobs.get(sha256), dtype="<f4").astype(np.float32)


def store_parent(blobs: BlobStore, vector: Float32) -> bytes:
    """Keep a parent vector; returns its SHA-256."""
    return blobs.put(vector.astype("<f4").tobytes())
