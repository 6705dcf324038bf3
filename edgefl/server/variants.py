"""The variants of one version as the server sees them: views of one parent vector, and what is sent of it to each.

Model: profiles whose variant has the same name share layout, precision and therefore round orders and weight files. The index map
of a variant says where its coordinates lie in the parent.
"""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgefl.codec.precision import in_rounds
from edgefl.codec.weights import Precision, decode_weights, encode_weights
from edgefl.compress.axes import index_from_axes
from edgefl.engine.contract import VariantFiles
from edgefl.layout import Float32, Index, Layout, nested_index
from edgefl.store.blobs import BlobStore
from edgefl.store.versions import VariantRecord, VersionRecord, variants
from edgefl.wire.releases import Manifest

LARGEST = 1e30
"""Leaves float32 room for the sums of a forward pass."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One structure of a version.

    Attributes:
        name: for example `w0.5-int8`.
        manifest: of one of the profiles that have it; layout and evaluation graphs are those of all.
        precision: of the weight files of its rounds.
        index: int64, the parent coordinate of each of its coordinates.
    """

    name: str
    manifest: Manifest
    precision: Precision
    index: Index

    @property
    def layout(self) -> Layout:
        """Layout of its flat vector."""
        return self.manifest.layout

    @property
    def sent(self) -> Index:
        """int64: the parent coordinate of each coordinate of its updates; frozen and personal tensors are in none."""
        shared = self.layout.shared()
        return self.index if shared is None else self.index[shared]

    def weights(self, parent: Float32) -> bytes:
        """The weight file that its devices get of a parent vector in a round."""
        return encode_weights(parent[self.index], self.layout, self.precision)

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


def largest_weight(precision: Precision) -> float:
    """Magnitude up to which a weight can be written and computed with."""
    return float(np.finfo(np.float16).max) if precision == Precision.FP16 else LARGEST


def load_variants(database: sqlite3.Connection, version: VersionRecord) -> Mapping[str, Variant]:
    """The distinct variants of a version by name, the widest first."""
    found: dict[str, Variant] = {}
    for record in variants(database, version.model, version.version):
        manifest = record.manifest
        if manifest.variant not in found:
            found[manifest.variant] = variant_of(version, record)
    return dict(sorted(found.items(), key=lambda item: -item[1].layout.size))


def variant_of(version: VersionRecord, record: VariantRecord) -> Variant:
    """What a version has for one profile."""
    manifest, precision = record.manifest, in_rounds(Precision(record.precision))
    return Variant(manifest.variant, manifest, precision, _index(version.layout, manifest.layout, record.axes))


def _index(parent: Layout, child: Layout, axes: bytes | None) -> Index:
    """Where a variant lies in its parent: in the rows that were written down at the push, or in the leading corner."""
    return nested_index(parent, child) if axes is None else index_from_axes(parent, child, axes)


def variant_of_profile(database: sqlite3.Connection, version: VersionRecord) -> Mapping[str, str]:
    """The name of the variant that a version has for each profile."""
    return {record.profile: record.manifest.variant for record in variants(database, version.model, version.version)}


def load_parent(blobs: BlobStore, sha256: bytes) -> Float32:
    """A parent vector from the blob store.

    Raises:
        StoreError: it is missing or damaged.
    """
    return np.frombuffer(blobs.get(sha256), dtype="<f4").astype(np.float32)


def store_parent(blobs: BlobStore, vector: Float32) -> bytes:
    """Keep a parent vector; returns its SHA-256."""
    return blobs.put(vector.astype("<f4").tobytes())
