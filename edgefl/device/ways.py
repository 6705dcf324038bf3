"""Ways to a version's files other than asking the server for their blocks. Pure.

A manifest may name *differences* (shorter files that turn weights which the device holds into the wanted ones) and *sources*
(places off the broker that have the same files).
"""

from dataclasses import dataclass

from edgefl.errors import InputError, MessageError
from edgefl.layout import Layout
from edgefl.wire.files import Difference, FileRef
from edgefl.wire.releases import Manifest
from edgefl.wire.sources import check_source


@dataclass(frozen=True, slots=True)
class Ways:
    """What a manifest says about how its files may be had.

    Attributes:
        weights: SHA-256 of the file that the differences make; empty without any.
        differences: shorter ways to it, the preferred first.
        layout: of the weights; None without differences.
        sources: other places.
        files: SHA-256 of the files that are in these places.
    """

    weights: bytes = b""
    differences: tuple[Difference, ...] = ()
    layout: Layout | None = None
    sources: tuple[str, ...] = ()
    files: frozenset[bytes] = frozenset()

    def to(self, ref: FileRef) -> tuple[Difference, ...]:
        """The differences that make this file and are shorter than it."""
        return tuple(d for d in self.differences if d.file.length < ref.length) if ref.sha256 == self.weights else ()


BLOCKS_ONLY = Ways()
"""No other ways than the server's blocks."""


def ways_of(manifest: Manifest | None) -> Ways:
    """What a manifest offers; sources that cannot be used are left out. None offers nothing."""
    if manifest is None:
        return BLOCKS_ONLY
    try:
        weights = manifest.file("weights").sha256
    except MessageError:
        weights = b""
    sources = []
    for source in manifest.sources:
        try:
            sources.append(check_source(source))
        except InputError:
            continue
    files = frozenset(ref.sha256 for ref in manifest.offered)
    return Ways(weights, manifest.differences, manifest.layout, tuple(sources), files)
