"""What the models of a device need, and what is to be fetched for it: the file itself, or a difference that makes it.

Model: a needed weights file that is not here is replaced by the first difference to it whose base is here, whole. The choice is
made once, when the need is stated, and given up for the file itself when the difference does not lead there.

Rule: a file of which blocks are on disk already is fetched itself: it has been begun, perhaps because a difference has failed.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgefl.device.rebuild import rebuild
from edgefl.device.ways import Ways
from edgefl.errors import StoreError, UpdateError
from edgefl.layout import Layout
from edgefl.store.blobs import BlobStore
from edgefl.wire.files import Difference, FileRef

log = logging.getLogger("edgefl.device")


class Needs:
    """The needs of all models. Owned by the fetcher.

    Args:
        blobs: files that are here.
        partial: directory of files that are not complete.
    """

    def __init__(self, blobs: BlobStore, partial: Path) -> None:
        self._blobs = blobs
        self._partial = partial
        self._needs: dict[str, tuple[tuple[FileRef, ...], Ways]] = {}
        self._chosen: dict[bytes, tuple[Difference, Layout]] = {}
        self._failed: set[bytes] = set()

    def put(self, model: str, files: tuple[FileRef, ...], ways: Ways) -> None:
        """Replace what a model needs."""
        self._needs[model] = (files, ways)
        wanted = self.files()
        self._chosen = {sha256: way for sha256, way in self._chosen.items() if sha256 in wanted}
        self._failed &= {d.file.sha256 for _, other in self._needs.values() for d in other.differences}
        for ref in files:
            if ref.sha256 not in self._chosen and not self._begun(ref):
                self._choose(ref, ways)

    def of(self, model: str) -> tuple[FileRef, ...]:
        """The files that a model needs."""
        return self._needs[model][0] if model in self._needs else ()

    def files(self) -> Mapping[bytes, FileRef]:
        """The files that any model needs, by SHA-256."""
        return {ref.sha256: ref for files, _ in self._needs.values() for ref in files}

    def fetched(self) -> Mapping[bytes, FileRef]:
        """The files to be fetched for it, by SHA-256."""
        found = (self.instead(ref) for ref in self.files().values())
        return {ref.sha256: ref for ref in found}

    def instead(self, ref: FileRef) -> FileRef:
        """What is fetched for a file: the difference that makes it, or the file itself."""
        chosen = self._chosen.get(ref.sha256)
        return chosen[0].file if chosen else ref

    def rebuilt(self, sha256: bytes, *, reserve: int) -> Iterator[bytes]:
        """Make the files that a difference leads to, now that it is here; the SHA-256 of each that could be made.

        What cannot be made is to be fetched itself from now on. `reserve` is the bytes of disk to leave free.
        """
        files = self.files()
        for target, (difference, layout) in list(self._chosen.items()):
            if difference.file.sha256 == sha256:
                del self._chosen[target]
                try:
                    rebuild(self._blobs, difference, files[target], layout, reserve=reserve)
                    yield target
                except (StoreError, UpdateError) as error:
                    log.warning("fetching whole weights: %s", error)
                    self._failed.add(sha256)

    def sources(self, sha256: bytes) -> tuple[str, ...]:
        """Places off the broker where a file should be."""
        found = (source for _, ways in self._needs.values() if sha256 in ways.files for source in ways.sources)
        return tuple(dict.fromkeys(found))

    def _begun(self, ref: FileRef) -> bool:
        return self._blobs.has(ref.sha256) or (self._partial / f"{ref.sha256.hex()}.part").exists()

    def _choose(self, ref: FileRef, ways: Ways) -> None:
        for difference in ways.to(ref) if ways.layout else ():
            if difference.file.sha256 not in self._failed and self._blobs.intact(difference.base) and ways.layout:
                self._chosen[ref.sha256] = (difference, ways.layout)
                return
