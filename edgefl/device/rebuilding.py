"""Making a weights file from one that is held and a difference."""

import hashlib

from edgefl.codec.difference import apply_difference
from edgefl.device.conditions import room_for
from edgefl.errors import UpdateError
from edgefl.layout import Layout
from edgefl.store.blobs import BlobStore
from edgefl.wire.messages import Difference, FileRef


def rebuild(difference: Difference, weights: FileRef, layout: Layout, blobs: BlobStore, reserve: int) -> None:
    """Put the weights that a difference leads to into the store.

    Args:
        difference: its file and its base are there.
        weights: what must come of it.
        layout: of both.
        blobs: files of all models.
        reserve: bytes of disk to leave free.

    Raises:
        StoreError: a file is missing or damaged, or the disk has no room.
        UpdateError: the difference does not decode, or leads elsewhere.
    """
    base, way = blobs.get(difference.base), blobs.get(difference.file.sha256)
    made = apply_difference(base, way, layout)
    if hashlib.sha256(made).digest() != weights.sha256:
        raise UpdateError("a difference has made other weights than it should", expected=weights.sha256.hex()[:16])
    room_for(len(made), blobs, reserve)
    blobs.put(made)
