"""The outbox: an encoded update and the memory that belongs to it, in one file that is replaced as a whole.

Why one file: the update says what was sent, the residual what was not; together they are the whole delta (sent + residual =
delta + old residual). Were they two files, a power cut between the two would count a part of the delta twice or never. The
velocity of momentum correction belongs to the same moment, and the header says which weights the delta started from, because the
next update may be coded with what they were.

Format: magic `EFO`, format version (`1`, or `2` with a velocity), header length (uint32, little endian), header (msgpack of
`OutboxEntry`), encoded update, residual, velocity (both float32, little endian), SHA-256 of all that precedes. A file of version
1 ends with the residual, and its header may end earlier: it is what edgefl wrote before there was a velocity.

Life: the trainer writes `outbox`; the agent sends its update until a receipt comes. If the server has stored it, `outbox` is
renamed to `settled`, whose memory the next training starts from; if it never will, `outbox` is deleted, and everything is as
if the round had not been trained.

Rules: a file that is damaged, of another format or unreadable is as good as none. Reading checks the digest of the whole file but
keeps only the parts that are asked for, so that the agent never holds a residual. `peek` alone checks nothing: it is for choosing
what not to delete.
"""

import hashlib
import os
import struct
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec

from edgefl.errors import StoreError
from edgefl.store.atomic import write_parts
from edgefl.wire.messages import Id, Number, Sha256

_PLAIN, _WITH_VELOCITY = b"EFO1", b"EFO2"
_HEAD = struct.Struct("<4sI")
_MAX_HEADER = 4096
_DIGEST_LENGTH = 32
_PIECE = 256 * 1024
_UPDATE, _RESIDUAL, _VELOCITY = range(3)
"""The parts in their order."""

Floats = bytes | memoryview
"""Bytes of float32 values; a view of an array that is large is not copied."""


class OutboxEntry(msgspec.Struct, frozen=True, array_like=True):
    """What an outbox file holds.

    Attributes:
        version, variant, round: what the update was trained from.
        layout: digest of the layout of the residual.
        samples, loss_before, loss_after: as in the wire's `UpdatePart`.
        sha256: of the encoded update.
        update_length, residual_length, velocity_length: bytes; there is no velocity without momentum correction.
        weights: SHA-256 of the weights file that the delta starts from; empty if it is not known.
        before: round of the earlier weights that the update is coded with; 0 if it is coded with none.
    """

    version: Number
    variant: Id
    round: Number
    layout: Id
    samples: Number
    loss_before: float
    loss_after: float
    sha256: Sha256
    update_length: Annotated[int, msgspec.Meta(ge=1)]
    residual_length: Annotated[int, msgspec.Meta(ge=0)]
    velocity_length: Annotated[int, msgspec.Meta(ge=0)] = 0
    weights: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    before: Number = 0


def write_outbox(path: Path, entry: OutboxEntry, update: bytes, residual: Floats, velocity: Floats = b"") -> None:
    """Replace the outbox atomically; the entry's lengths are those of the parts.

    Raises:
        StoreError: it could not be written; the old one is still there.
    """
    header = msgspec.msgpack.encode(entry)
    magic = _WITH_VELOCITY if len(velocity) else _PLAIN
    parts = (_HEAD.pack(magic, len(header)), header, update, residual, velocity)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    write_parts(path, (*parts, digest.digest()))


def read_entry(path: Path) -> OutboxEntry | None:
    """What the file holds, or None if there is no usable file."""
    found = _read(path)
    return found[0] if found else None


def peek(path: Path) -> OutboxEntry | None:
    """What the file's header says, however damaged the rest is; None without a header."""
    try:
        with path.open("rb") as file:
            head = _header(file)
            return head[1] if head else None
    except (OSError, struct.error, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def read_update(path: Path) -> bytes:
    """The encoded update.

    Raises:
        StoreError: there is no usable file.
    """
    found = _read(path, _UPDATE)
    if found is None:
        raise StoreError(f"the outbox {path} is missing or damaged", remedy="The round will be trained again")
    return found[1][0]


def read_residual(path: Path) -> tuple[OutboxEntry, bytes] | None:
    """The residual and what it belongs to, or None if there is no usable file."""
    found = _read(path, _RESIDUAL)
    return (found[0], found[1][0]) if found else None


def read_memory(path: Path) -> tuple[OutboxEntry, bytes, bytes] | None:
    """Residual and velocity (empty if there is none) and what they belong to, or None if there is no usable file."""
    found = _read(path, _RESIDUAL, _VELOCITY)
    return (found[0], found[1][0], found[1][1]) if found else None


def _read(path: Path, *wanted: int) -> tuple[OutboxEntry, list[bytes]] | None:
    """The entry and the bytes of the wanted parts, after the whole file has been checked."""
    try:
        with path.open("rb") as file:
            head = _header(file)
            if head is None:
                return None
            start, entry = head
            lengths = (entry.update_length, entry.residual_length, entry.velocity_length)
            if os.fstat(file.fileno()).st_size != len(start) + sum(lengths) + _DIGEST_LENGTH:
                return None
            digest = hashlib.sha256(start)
            parts = [_pass(file, length, digest, keep=part in wanted) for part, length in enumerate(lengths)]
            return (entry, [parts[part] for part in wanted]) if file.read() == digest.digest() else None
    except (OSError, struct.error, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _header(file: BinaryIO) -> tuple[bytes, OutboxEntry] | None:
    """All that precedes the update, and what it says; None for another format."""
    head = file.read(_HEAD.size)
    magic, length = _HEAD.unpack(head)
    if magic not in (_PLAIN, _WITH_VELOCITY) or length > _MAX_HEADER:
        return None
    header = file.read(length)
    entry = msgspec.msgpack.decode(header, type=OutboxEntry)
    return (head + header, entry) if (magic == _WITH_VELOCITY) == bool(entry.velocity_length) else None


def _pass(file: BinaryIO, length: int, digest: "hashlib._Hash", *, keep: bool) -> bytes:
    """Read on by `length` bytes; what was read, if it is to be kept."""
    kept = bytearray()
    while length > 0 and (piece := file.read(min(length, _PIECE))):
        digest.update(piece)
        length -= len(piece)
        if keep:
            kept += piece
    return bytes(kept)
