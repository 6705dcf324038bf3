"""The outbox: an encoded update and the residual that belongs to it, in one file that is replaced as a whole.

Why one file: the update says what was sent, the residual what was not; together they are the whole delta (sent + residual =
delta + old residual). Were they two files, a power cut between the two would count a part of the delta twice or never.

Format: magic `EFO1`, header length (uint32, little endian), header (msgpack of `OutboxEntry`), encoded update, residual
(float32, little endian), SHA-256 of all that precedes.

Life: the trainer writes `outbox`; the agent sends its update until a receipt comes. If the server has stored it, `outbox` is
renamed to `settled`, whose residual the next training starts from; if it never will, `outbox` is deleted, and everything is as
if the round had not been trained.

Rules: a file that is damaged, of another format or unreadable is as good as none. Reading checks the digest of the whole file but
keeps only the part that is asked for, so that the agent never holds a residual.
"""

import hashlib
import os
import struct
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import msgspec

from edgefl.errors import StoreError
from edgefl.store.atomic import write_file
from edgefl.wire.messages import Id, Number, Sha256

_MAGIC = b"EFO1"
_HEAD = struct.Struct("<4sI")
_MAX_HEADER = 4096
_DIGEST_LENGTH = 32
_PIECE = 256 * 1024


class OutboxEntry(msgspec.Struct, frozen=True, array_like=True):
    """What an outbox file holds.

    Attributes:
        version, variant, round: what the update was trained from.
        layout: digest of the layout of the residual.
        samples, loss_before, loss_after: as in the wire's `UpdatePart`.
        sha256: of the encoded update.
        update_length, residual_length: bytes.
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


def write_outbox(path: Path, entry: OutboxEntry, update: bytes, residual: bytes) -> None:
    """Replace the outbox atomically.

    Raises:
        StoreError: it could not be written; the old one is still there.
    """
    header = msgspec.msgpack.encode(entry)
    parts = (_HEAD.pack(_MAGIC, len(header)), header, update, residual)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    write_file(path, b"".join((*parts, digest.digest())))


def read_entry(path: Path) -> OutboxEntry | None:
    """What the file holds, or None if there is no usable file."""
    found = _read(path, "nothing")
    return found[0] if found else None


def read_update(path: Path) -> bytes:
    """The encoded update.

    Raises:
        StoreError: there is no usable file.
    """
    found = _read(path, "update")
    if found is None:
        raise StoreError(f"the outbox {path} is missing or damaged", remedy="The round will be trained again")
    return found[1]


def read_residual(path: Path) -> tuple[OutboxEntry, bytes] | None:
    """The residual and what it belongs to, or None if there is no usable file."""
    return _read(path, "residual")


def _read(path: Path, part: Literal["nothing", "update", "residual"]) -> tuple[OutboxEntry, bytes] | None:
    """The entry and the bytes of one part, after the whole file has been checked."""
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            head = file.read(_HEAD.size)
            magic, length = _HEAD.unpack(head)
            if magic != _MAGIC or length > _MAX_HEADER:
                return None
            header = file.read(length)
            entry = msgspec.msgpack.decode(header, type=OutboxEntry)
            whole = _HEAD.size + length + entry.update_length + entry.residual_length + _DIGEST_LENGTH
            if os.fstat(file.fileno()).st_size != whole:
                return None
            digest.update(head + header)
            update = _pass(file, entry.update_length, digest, keep=part == "update")
            residual = _pass(file, entry.residual_length, digest, keep=part == "residual")
            return (entry, update or residual) if file.read() == digest.digest() else None
    except (OSError, struct.error, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _pass(file: BinaryIO, length: int, digest: "hashlib._Hash", *, keep: bool) -> bytes:
    """Read on by `length` bytes; what was read, if it is to be kept."""
    kept = bytearray()
    while length > 0 and (piece := file.read(min(length, _PIECE))):
        digest.update(piece)
        length -= len(piece)
        if keep:
            kept += piece
    return bytes(kept)
