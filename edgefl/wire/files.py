"""What is said of files: which file, how to have it from an older one, which of its blocks are missing, and the blocks.

Model: a file is known by its content (`FileRef`). It travels in blocks of `BLOCK_SIZE`, each with a hash of its own, so that a
device which was cut off asks only for what it lacks (`Want`), and a damaged block is asked for again, not the file. The
functions on these values stand in `edgefl.wire.blocks`.
"""

from typing import Annotated

import msgspec

from edgefl.wire.messages import Number, Sha256

BLOCK_SIZE = 32 * 1024
"""Bytes of every block of a file but its last."""
MAX_FILE = 1 << 30
MAX_BLOCKS = MAX_FILE // BLOCK_SIZE

BlockHash = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class FileRef(msgspec.Struct, frozen=True, array_like=True):
    """A file by content: its place in the variant, its length and hashes.

    `blocks` holds the first 16 bytes of each block's SHA-256, in order; all blocks but the last are `BLOCK_SIZE` long.
    """

    role: Annotated[str, msgspec.Meta(min_length=1, max_length=20)]
    sha256: Sha256
    length: Annotated[int, msgspec.Meta(ge=1, le=MAX_FILE)]
    blocks: Annotated[tuple[BlockHash, ...], msgspec.Meta(min_length=1, max_length=MAX_BLOCKS)]


class Difference(msgspec.Struct, frozen=True, array_like=True):
    """A shorter way to a weights file for a device that holds certain older ones.

    Attributes:
        base: hash of the weights file that must be held.
        file: what turns it into the wanted weights file, to the last bit (`edgefl.codec.difference`).
    """

    base: Sha256
    file: FileRef


class Want(msgspec.Struct, frozen=True, array_like=True):
    """Wanted blocks of a file: bit i of `bitmap` (least significant bit of byte 0 first) stands for block `first + i`.

    `alone` asks for an answer on the device's own topic, at its own pace: a slow link cannot take what others have asked for.
    `heard` is the `sent` of the last block that came over this connection, 0 for none: a connection keeps the order, so what was
    sent later is still on its way, and what was sent before and is asked for is lost. Without it, `behind` says for how many
    seconds what was sent is still on its way: a slow link's time for a block, or the time for which it has listened in vain.
    `fresh` says that the device begins to listen with this request: nothing that was sent before is on its way to it.
    """

    sha256: Sha256
    first: Annotated[int, msgspec.Meta(ge=0, lt=MAX_BLOCKS)]
    bitmap: Annotated[bytes, msgspec.Meta(min_length=1, max_length=64)]
    alone: bool = False
    behind: Annotated[int, msgspec.Meta(ge=0, le=30)] = 0
    heard: Number = 0
    fresh: bool = False


class Block(msgspec.Struct, frozen=True, array_like=True):
    """One block of a file; the topic names the file.

    `sent` is when, on the server's clock, in steps of its choice, never backwards; 0 if it does not say. Devices give it back.
    """

    file: BlockHash
    index: Annotated[int, msgspec.Meta(ge=0, lt=MAX_BLOCKS)]
    data: Annotated[bytes, msgspec.Meta(min_length=1, max_length=BLOCK_SIZE)]
    sent: Number = 0
