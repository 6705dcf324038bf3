"""A file as blocks: how it is named, cut, asked for and checked. Pure; nothing here touches a disk.

A device asks for blocks with a bitmap relative to a first index (as AWS IoT streams do); the server answers each wanted block
once, to everybody who listens.
"""

import hashlib
from collections.abc import Iterable, Iterator

from edgefl.errors import BlockError, MessageError
from edgefl.wire.files import BLOCK_SIZE, FileRef, Want

MAX_WINDOW_SPAN = 64 * 8
"""Blocks that one request's bitmap can reach."""


def block_hash(data: bytes) -> bytes:
    """First 16 bytes of the SHA-256."""
    return hashlib.sha256(data).digest()[:16]


def file_ref(role: str, data: bytes) -> FileRef:
    """Describe a file's content."""
    cuts = range(0, len(data), BLOCK_SIZE)
    return FileRef(role, hashlib.sha256(data).digest(), len(data), tuple(block_hash(data[i : i + BLOCK_SIZE]) for i in cuts))


def check_ref(ref: FileRef) -> FileRef:
    """The same reference, if its length and its number of blocks agree.

    Raises:
        MessageError: they do not.
    """
    blocks = -(-ref.length // BLOCK_SIZE)
    if blocks != len(ref.blocks):
        raise MessageError(
            f"file {ref.role!r} is described wrongly",
            expected=f"{blocks} block hashes for {ref.length} bytes",
            found=f"{len(ref.blocks)}",
        )
    return ref


def block_length(ref: FileRef, index: int) -> int:
    """Length in bytes of block `index` of a file."""
    return min(BLOCK_SIZE, ref.length - index * BLOCK_SIZE)


def check_block(ref: FileRef, index: int, data: bytes) -> None:
    """Check a block against its file's description.

    Raises:
        BlockError: no such block, another length, or another hash (a flipped bit).
    """
    name = f"block {index} of {ref.role} file {ref.sha256.hex()[:16]}"
    if not 0 <= index < len(ref.blocks):
        raise BlockError(f"{name} does not exist", expected=f"index 0 to {len(ref.blocks) - 1}")
    if len(data) != block_length(ref, index):
        raise BlockError(f"{name} has a wrong length", expected=f"{block_length(ref, index)} bytes", found=f"{len(data)}")
    if block_hash(data) != ref.blocks[index]:
        raise BlockError(f"{name} is damaged", expected=f"hash {ref.blocks[index].hex()}", found=block_hash(data).hex())


def want(ref: FileRef, indices: Iterable[int]) -> Want:
    """A request for these blocks, which must lie within `MAX_WINDOW_SPAN` of the smallest."""
    wanted = sorted(set(indices))
    first = wanted[0]
    bits = 0
    for index in wanted:
        bits |= 1 << (index - first)
    return Want(ref.sha256, first, bits.to_bytes((bits.bit_length() + 7) // 8, "little"))


def wanted(request: Want) -> Iterator[int]:
    """The block indices that a request asks for, ascending."""
    bits = int.from_bytes(request.bitmap, "little")
    while bits:
        low = bits & -bits
        yield request.first + low.bit_length() - 1
        bits ^= low
