"""Shorter ways to a new version's weights, for devices that hold an earlier one.

Model: a device that is to change versions holds the weights that the earlier version was pushed with, and usually those of its
newest round. From each of these, of the last `REACH` versions with a variant of the same layout for the profile, a difference
to the new weights is made and named in the manifest if it is worth it.

Rules: a difference is named after it has been applied here and has given the very file. The list is bounded, because it travels
with the manifest; the shortest come first. A base that cannot be read costs a longer download and nothing else.
"""

import logging
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from edgefl.codec.difference import apply_difference, encode_difference
from edgefl.errors import EdgeflError
from edgefl.layout import Layout
from edgefl.store.blobs import BlobStore
from edgefl.store.database import open_database
from edgefl.store.offers import recent_offers
from edgefl.store.versions import earlier_variants
from edgefl.wire.blocks import file_ref
from edgefl.wire.files import Difference, FileRef

if TYPE_CHECKING:
    from edgefl.server.workshop import Made  # loads torch, which differences do not need

REACH = 2
"""Versions before the new one."""
WORTH = 0.7
"""Part of the whole file that a difference may take."""
LONGEST_LIST = 16 * 1024
"""Bytes that the differences of a manifest may take in it."""
_ENTRY = 120
"""Bytes of an entry of that list at most, block hashes not counted."""

log = logging.getLogger("edgefl.server")


def version_differences(path: Path, blobs: BlobStore, model: str, made: Iterable["Made"]) -> Mapping[str, tuple[Difference, ...]]:
    """Shorter ways to the weights of each profile, by its name.

    Args:
        path: of the fleet's database.
        blobs: holds the weights files, receives the differences.
        model: that is pushed.
        made: its new variants.

    Raises:
        StoreError: database or blob store cannot be used.
    """
    with closing(open_database(path)) as database:
        ways = VersionDifferences(database, blobs, model)
        return {one.profile.name: ways.to(one.profile.name, one.files[-1], one.candidate.layout) for one in made}


class VersionDifferences:
    """Makes the differences of one push; profiles that share a weights file share them.

    Args:
        database: the fleet's.
        blobs: holds the weights files, receives the differences.
        model: that is pushed.
    """

    def __init__(self, database: sqlite3.Connection, blobs: BlobStore, model: str) -> None:
        self._database = database
        self._blobs = blobs
        self._model = model
        self._made: dict[tuple[bytes, bytes], Difference | None] = {}

    def to(self, profile: str, weights: FileRef, layout: Layout) -> tuple[Difference, ...]:
        """The differences to a profile's new weights file, which is in the blob store; the shortest first.

        Raises:
            StoreError: the database or the new file cannot be read, or a difference cannot be written.
        """
        bases = dict.fromkeys(self._bases(profile, layout))
        found = [self._difference(base, weights, layout) for base in bases if base != weights.sha256]
        ways = sorted((way for way in found if way), key=lambda way: way.file.length)
        room = LONGEST_LIST
        named = []
        for way in ways:
            room -= _ENTRY + 16 * len(way.file.blocks)
            if room >= 0:
                named.append(way)
        return tuple(named)

    def _bases(self, profile: str, layout: Layout) -> Iterator[bytes]:
        """SHA-256 of the weights files that a device of the profile may hold, the newest first."""
        for record in earlier_variants(self._database, self._model, profile, REACH):
            manifest = record.manifest
            if manifest.layout == layout:
                if manifest.trains:
                    yield from recent_offers(self._database, self._model, manifest.version, 1).get(manifest.variant, [])
                yield manifest.file("weights").sha256

    def _difference(self, base: bytes, weights: FileRef, layout: Layout) -> Difference | None:
        key = (base, weights.sha256)
        if key not in self._made:
            data = self._encoded(base, weights, layout)
            self._made[key] = None
            if data is not None:
                self._blobs.put(data)
                self._made[key] = Difference(base, file_ref("difference", data))
        return self._made[key]

    def _encoded(self, base: bytes, weights: FileRef, layout: Layout) -> bytes | None:
        """What leads from one file to the other; None if it is not worth it, or the base is gone or of another precision."""
        target = self._blobs.get(weights.sha256)
        if not self._blobs.has(base):
            return None
        try:
            before = self._blobs.get(base)
            data = encode_difference(before, target, layout)
            worth = data is not None and len(data) <= WORTH * len(target)
            return data if data is not None and worth and apply_difference(before, data, layout) == target else None
        except EdgeflError as error:
            log.info("no difference from the weights file %s: %s", base.hex()[:16], error)
            return None
