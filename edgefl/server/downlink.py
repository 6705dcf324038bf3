"""The weights on their way to the devices: the files of a round, and shorter ways to them for devices that hold older ones.

Model: what devices hold is a vector in parent coordinates (`edgefl.codec.advance`); each variant's file is made of it.
From each file of the rounds before, and from the version's own, the difference to the new file is made once and offered if it is
worth it. So a device that has missed rounds gets one partial sum, one that has just been set up starts from what it was installed
with, and who holds nothing that is known gets the whole file.

Rules: a difference is offered after it has been applied here and has given the very file that the order names. Older files differ
more, so the first that is not worth it ends the search. The list is bounded, because it travels with each order.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgefl.codec.difference import apply_difference, encode_difference
from edgefl.errors import EdgeflError, StoreError
from edgefl.layout import Float32
from edgefl.server.variants import Variant
from edgefl.store.blobs import BlobStore
from edgefl.wire.blocks import file_ref
from edgefl.wire.files import Difference, FileRef
from edgefl.wire.rounds import HISTORY_REACH

REACH = HISTORY_REACH
"""Rounds that a device may have missed and still be served with a difference; as many files are kept for updates anyway."""
WORTH = 2
"""A difference is worth it if it takes at most one part in so many of the whole file."""
LONGEST_LIST = 32 * 1024
"""Bytes that the differences of one order may take in its message."""
_ENTRY = 120
"""Bytes of an entry of that list at most, block hashes not counted."""

log = logging.getLogger("edgefl.server")


@dataclass(frozen=True, slots=True)
class Offer:
    """What the devices of a round can fetch.

    Attributes:
        files: the weights file of each variant, by its name.
        differences: shorter ways to it, by variant, each from another file.
    """

    files: Mapping[str, FileRef]
    differences: Mapping[str, tuple[Difference, ...]]

    def all_files(self) -> Iterator[FileRef]:
        """Everything that a device may ask for."""
        yield from self.files.values()
        for differences in self.differences.values():
            yield from (difference.file for difference in differences)


def offer_weights(
    blobs: BlobStore, variants: Mapping[str, Variant], held: Float32, bases: Mapping[str, Sequence[bytes]]
) -> Offer:
    """Write what the devices of a round fetch.

    Args:
        blobs: receives the files, and has those of the rounds before.
        variants: by name.
        held: what devices are to hold, float32, in parent coordinates.
        bases: SHA-256 of the weights files that devices may hold, by variant, the newest first.

    Raises:
        ModelError: the weights cannot be written for a variant.
        StoreError: a file cannot be written.
    """
    contents = {name: variant.weights(held) for name, variant in variants.items()}
    for data in contents.values():
        blobs.put(data)
    files = {name: file_ref("weights", data) for name, data in contents.items()}
    differences = {
        name: _bounded(_differences(blobs, variant, contents[name], files[name].sha256, bases.get(name, ())))
        for name, variant in variants.items()
    }
    return Offer(files, differences)


def _bounded(differences: Iterable[Difference]) -> tuple[Difference, ...]:
    """As many of the first as an order has room for."""
    found: list[Difference] = []
    room = LONGEST_LIST
    for difference in differences:
        room -= _ENTRY + 16 * len(difference.file.blocks)
        if room >= 0:
            found.append(difference)
    return tuple(found)


def _differences(
    blobs: BlobStore, variant: Variant, target: bytes, sha256: bytes, bases: Sequence[bytes]
) -> Iterator[Difference]:
    """The differences that are worth it; their files are in the blob store."""
    own = variant.manifest.file("weights").sha256
    recent = [base for base in dict.fromkeys(bases) if base not in (sha256, own)]
    for base in recent:
        data = _difference(blobs, variant, base, target)
        if data is None:
            break
        yield _kept(blobs, base, data)
    data = _difference(blobs, variant, own, target) if own != sha256 else None
    if data is not None:
        yield _kept(blobs, own, data)


def _kept(blobs: BlobStore, base: bytes, data: bytes) -> Difference:
    blobs.put(data)
    return Difference(base, file_ref("difference", data))


def _difference(blobs: BlobStore, variant: Variant, base: bytes, target: bytes) -> bytes | None:
    """What leads from a file to another; None if it is not worth it, or the file is gone."""
    if not blobs.has(base):
        return None
    try:
        before = blobs.get(base)
        data = encode_difference(before, target, variant.layout)
        worth = data is not None and len(data) * WORTH <= len(target)
        return data if data is not None and worth and apply_difference(before, data, variant.layout) == target else None
    except StoreError as error:
        log.warning("no difference from the weights file %s: %s", base.hex()[:16], error)
    except EdgeflError as error:  # a file of another kind under this name
        log.error("no difference from the weights file %s: %s", base.hex()[:16], error)
    return None
