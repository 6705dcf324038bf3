"""Rebuilding a weights file from an older one and a difference, both from the blob store.

Rule: the hash in the signed description decides. Whatever else comes of it is an error, and the caller fetches the whole file.
Memory: the two weights files and the difference, and a small multiple of them while the difference is applied.
"""

import hashlib

from edgefl.codec.difference import apply_difference
from edgefl.device.conditions import room_for
from edgefl.errors import UpdateError
from edgefl.layout import Layout
from edgefl.store.blobs import BlobStore
from edgefl.wire.files import Difference, FileRef


def rebuild(blobs: BlobStore, difference: Difference, target: FileRef, layout: Layout, *, reserve: int) -> None:
    """Make a weights file and put it into the blob store.

    Args:
        blobs: holds base and difference, receives the result.
        difference: the way.
        target: what must come of it.
        layout: of the weights.
        reserve: bytes of disk to leave free.

    Raises:
        StoreError: base or difference is missing or damaged, or there is no room.
        UpdateError: the difference is none, or makes another file.
    """
    base, way = blobs.get(difference.base), blobs.get(difference.file.sha256)
    made = apply_difference(base, way, layout)
    if hashlib.sha256(made).digest() != target.sha256:
        raise UpdateError("a difference has made other weights than it should", expected=target.sha256.hex()[:16])
    room_for(len(made), blobs, reserve)
    blobs.put(made)
